"""A shard that is written at one go: samples go in, the tar goes out, its index rows are kept."""

from __future__ import annotations

from collections import Counter

from data_pipeline.label_sets import LabelSet
from data_pipeline.prepare_image import PreparedImage
from data_pipeline.sample_rows import SampleRows
from data_pipeline.shard_record import ShardRecord, SkippedFile, WrittenShard
from data_pipeline.tar_writer import ShardTar, Sink


class ShardSamples:
    """Takes the images of one shard and writes them to an open file."""

    def __init__(self, file: Sink) -> None:
        """Begin a shard."""
        self._tar = ShardTar(file)
        self._rows = SampleRows()
        self._skipped: list[SkippedFile] = []
        self._changes: Counter[str] = Counter()

    def add(self, row: int, label: int | LabelSet, where: str, image: PreparedImage | str) -> None:
        """Take an image, or note why there is none, with where it comes from.

        Raises:
            OSError: The shard cannot be written.
        """
        if isinstance(image, str):
            self._skipped.append(SkippedFile(where, image))
            return
        self._rows.add(row, label, image, add_sample(self._tar, row, label, image))
        if image.change:
            self._changes[image.change] += 1

    def finish(self, number: int) -> ShardRecord:
        """Write the rest; gives the record of the shard, which is `number` in the plan.

        Raises:
            OSError: The shard cannot be written.
        """
        self._tar.close()
        written = WrittenShard(
            number=number,
            num_images=len(self._rows),
            num_bytes=self._tar.num_bytes,
            sha256=self._tar.sha256(),
            skipped=tuple(self._skipped),
            changes=dict(self._changes),
        )
        return ShardRecord(written, self._rows.table())


def add_sample(tar: ShardTar, row: int, label: int | LabelSet, image: PreparedImage) -> int:
    """Write an image and its label; gives the offset of the image's bytes.

    Raises:
        OSError: The shard cannot be written.
    """
    return tar.add(f"{row:09d}", _label_member(label), (image.extension, image.data))


def _label_member(label: int | LabelSet) -> tuple[str, bytes]:
    """Extension and content of the member that tells the label."""
    if isinstance(label, LabelSet):
        return "cls.json", label.as_json()
    return "cls", str(label).encode()
