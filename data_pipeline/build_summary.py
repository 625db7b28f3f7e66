"""What a build did, for people."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.manifest import Manifest
from data_pipeline.output_folder import Part, describe_skipped
from data_pipeline.shard_record import SkippedFile, WrittenShard

_CHANGES = {
    "converted": "stored {count:,} GIF or BMP files as PNG",
    "shrunk": "stored {count:,} images anew, smaller",
    "broken": "kept {count:,} files that do not decode",
}


@dataclass(frozen=True)
class BuildSummary:
    """A finished build.

    `changes` counts the images whose bytes are not simply their file's, `num_duplicates` those that
    equal an earlier one to the byte, `num_written` those that this start wrote; `notices` are a
    stream's own.
    """

    output: Path | str
    manifest: Manifest
    skipped: tuple[SkippedFile, ...] = ()
    changes: Counter[str] = field(default_factory=Counter)
    num_duplicates: int = 0
    num_written: int = 0
    seconds: float = 0.0
    already_built: bool = False
    notices: tuple[str, ...] = ()

    def text(self) -> str:
        """The summary, several lines."""
        manifest = self.manifest
        what = manifest.counts_text()
        if self.already_built:
            return f"{self.output} already holds the finished build of this: {what}"
        lines = [
            f"wrote {what}",
            f"  {manifest.name}, split {manifest.split}, to {self.output} "
            f"in {self.seconds:.1f} s ({self.num_written / max(self.seconds, 1e-9):,.0f} images/s)",
        ]
        earlier = manifest.num_images - self.num_written
        if earlier:
            lines.append(f"  {earlier:,} of these images lay there from an earlier start")
        lines.append(f"  data digest {manifest.digest}")
        for change, count in sorted(self.changes.items()):
            lines.append("  " + _CHANGES[change].format(count=count))
        if self.num_duplicates:
            lines.append(f"  {self.num_duplicates:,} images are exact copies of others")
        notices = [f"  {notice}" for notice in self.notices]
        return "\n".join([*lines, *describe_skipped(self.output, self.skipped), *notices])


@dataclass(frozen=True)
class PartSummary:
    """A part of a build that is finished."""

    output: Path | str
    part: Part
    shards: tuple[WrittenShard, ...]
    seconds: float
    notices: tuple[str, ...] = ()

    def text(self) -> str:
        """The summary, two lines and the notices."""
        images = sum(shard.num_images for shard in self.shards)
        skipped = sum(len(shard.skipped) for shard in self.shards)
        earlier = sum(shard.was_there for shard in self.shards)
        there = f", {earlier} of them by an earlier start" if earlier else ""
        lines = [
            f"part {self.part}: {len(self.shards):,} shards with {images:,} images are written in "
            f"{self.output}{there}; {skipped:,} files were left out; {self.seconds:.1f} s",
            *(f"  {notice}" for notice in self.notices),
            f"  when all parts are: python -m data_pipeline.merge {self.output}",
        ]
        return "\n".join(lines)
