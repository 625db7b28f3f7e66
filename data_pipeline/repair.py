"""`python -m data_pipeline.repair`: damaged shards are written anew without what is lost.

Exit code 0: sound, or repaired; 1: damage found by `--dry-run`; 2: refused. docs/broken_data.md
says when to repair, and what a repair means for runs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from configs.errors import RefusedInput
from data_pipeline.broken import BrokenRecord
from data_pipeline.dataset import ShardedDataset, open_dataset
from data_pipeline.index_table import read_index, write_index
from data_pipeline.manifest import INDEX_FILE, MANIFEST_FILE, Manifest, ShardEntry
from data_pipeline.repaired_shard import write_repaired
from data_pipeline.shard_damage import ShardDamage, examine_shard, rows_of
from data_pipeline.staged_files import commit, is_interrupted, is_plain_name, staging
from data_pipeline.worker_processes import num_usable_cores

EXIT_DONE = 0
EXIT_DAMAGED = 1
REPAIRED_FILE = "repaired.jsonl"
DEFAULT_MAX_LOST = 0.1
_IMAGES_SHOWN = 5


@dataclass(frozen=True)
class Repair:
    """What was found, and done unless `is_dry_run`; `after` is the manifest then, else `before`."""

    folder: Path
    before: Manifest
    after: Manifest
    damages: tuple[ShardDamage, ...]
    is_dry_run: bool

    @property
    def lost(self) -> list[BrokenRecord]:
        """Every image that is dropped, with its row in the old index."""
        return [record for damage in self.damages for record in damage.lost]

    def text(self) -> str:
        """The result for people, a paragraph for each damaged shard."""
        if not self.damages:
            return f"sound: {self.before.counts_text()}; nothing to repair"
        lost, number = len(self.lost), len(self.damages)
        would = "would drop" if self.is_dry_run else "dropped"
        lines = [
            f"{'damaged' if self.is_dry_run else 'repaired'}: {would} {lost:,} of "
            f"{self.before.num_images:,} images, from {number} damaged shard"
            f"{'s' if number > 1 else ''}"
        ]
        for damage in self.damages:
            lines += _describe(self, damage)
        if not self.is_dry_run:
            if lost:
                lines.append(f"  every dropped image is listed in {self.folder / REPAIRED_FILE}")
            lines.append(_digest_line(self.before, self.after))
        return "\n".join(lines)


def repair_dataset(
    folder: Path,
    *,
    dry_run: bool = False,
    max_lost_fraction: float = DEFAULT_MAX_LOST,
    workers: int | None = None,
) -> Repair:
    """Examine every shard of a dataset, and write the damaged ones anew without what is lost.

    The old files stay until all new ones are complete; interrupted at any moment, the next repair
    goes on. Without damage nothing is changed.

    Args:
        folder: the dataset; not one of foreign shards.
        dry_run: only look.
        max_lost_fraction: a repair that would drop more than this share of the images is refused.
        workers: shards examined at a time, in threads; None means one per core.

    Raises:
        RefusedInput: It is not a dataset of ours, its index is damaged, or too much is lost.
    """
    folder = Path(folder)
    if dry_run:
        if is_interrupted(folder):
            raise RefusedInput(f"{folder}: a repair was interrupted; run it again first")
        dataset = _opened(folder)
        damages = _examine(dataset, workers)
        return Repair(folder, dataset.manifest, dataset.manifest, damages, is_dry_run=True)
    Manifest.load(folder)  # refuses what is no dataset, before a folder is made in it
    with staging(folder) as staged:
        dataset = _opened(folder)
        damages = _examine(dataset, workers)
        after = dataset.manifest
        if damages:
            _refuse_to_lose(dataset, damages, max_lost_fraction)
            after = _replace(dataset, damages, staged)
    return Repair(folder, dataset.manifest, after, damages, is_dry_run=False)


def _opened(folder: Path) -> ShardedDataset:
    dataset = open_dataset(folder)
    if dataset.manifest.foreign:
        raise RefusedInput(
            f"{folder} only indexes shards that were written elsewhere, and those are never "
            "changed; get the damaged ones again and index anew, or train within "
            "data.max_broken_fraction"
        )
    for entry in dataset.manifest.shards:
        if not is_plain_name(entry.path):
            raise RefusedInput(
                f"{folder}: {MANIFEST_FILE} names the shard {entry.path!r}; only shards that lie "
                "in the folder itself are repaired"
            )
    return dataset


def _examine(dataset: ShardedDataset, workers: int | None) -> tuple[ShardDamage, ...]:
    """The damaged shards, in the order of the manifest."""
    found = []
    with (
        ThreadPoolExecutor(workers or num_usable_cores()) as threads,
        tqdm(total=dataset.num_images, unit=" images", disable=None) as bar,
    ):
        for damage in threads.map(partial(examine_shard, dataset), range(dataset.num_shards)):
            bar.update(len(rows_of(dataset, damage.number)))
            if not damage.is_sound:
                found.append(damage)
    return tuple(found)


def _refuse_to_lose(
    dataset: ShardedDataset, damages: Sequence[ShardDamage], max_lost_fraction: float
) -> None:
    lost, num_images = sum(len(damage.lost) for damage in damages), dataset.num_images
    if lost == num_images:
        raise RefusedInput(f"{dataset.folder}: no image is left; build the dataset anew")
    if lost > max_lost_fraction * num_images:
        raise RefusedInput(
            f"{dataset.folder}: {lost} of {num_images} images are lost, more than --max-lost "
            f"{max_lost_fraction} lets a repair drop ({_worst(dataset.manifest, damages)}); is "
            "everything mounted? `--dry-run` lists all of it, a larger --max-lost goes on"
        )


def _worst(manifest: Manifest, damages: Sequence[ShardDamage]) -> str:
    worst = max(damages, key=lambda damage: len(damage.lost))
    path = manifest.shards[worst.number].path
    return f"most in {path}: {worst.problem or worst.lost[0].reason}"


def _replace(dataset: ShardedDataset, damages: Sequence[ShardDamage], staged: Path) -> Manifest:
    """Write new shards, index, list and manifest, and put them into the places of the old ones."""
    folder, before = dataset.folder, dataset.manifest
    offset, is_kept = dataset.offset.copy(), np.ones(dataset.num_images, dtype=bool)
    entries: list[ShardEntry | None] = list(before.shards)
    replaced: dict[str, str] = {}
    for damage in damages:
        is_kept[[record.row for record in damage.lost]] = False
        rows = [row for row in rows_of(dataset, damage.number) if is_kept[row]]
        name = f"{damage.number:06d}.tar"
        entries[damage.number] = None
        if rows:
            entry, offset[rows] = write_repaired(dataset, damage.number, rows, staged / name)
            entries[damage.number] = entry
            replaced[name] = entry.path
    kept = tuple(entry for entry in entries if entry is not None)
    after = Manifest.describe(
        identity=(before.name, before.split),
        classes=before.classes,
        shards=kept,
        source=_source_after(before, int((~is_kept).sum())),
        index_digest=write_index(staged, _index_after(folder, offset, is_kept)),
    )
    after.save(staged)
    if not is_kept.all():
        _list_lost(folder, staged, damages)
        replaced[REPAIRED_FILE] = REPAIRED_FILE
    replaced |= {INDEX_FILE: INDEX_FILE, MANIFEST_FILE: MANIFEST_FILE}
    gone = {entry.path for entry in before.shards} - {entry.path for entry in kept}
    commit(folder, replaced, sorted(gone))
    return after


def _index_after(folder: Path, offset: np.ndarray, is_kept: np.ndarray) -> pa.Table:
    """The index without the lost rows, with new offsets, and no number for an emptied shard."""
    table = read_index(folder)
    old_numbers = np.from_dlpack(table["shard"].combine_chunks())[is_kept]
    numbers = np.unique(old_numbers, return_inverse=True)[1].astype(np.int32)
    table = table.filter(pa.array(is_kept))
    for name, values in (("shard", numbers), ("offset", offset[is_kept])):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values))
    return table.combine_chunks()


def _source_after(before: Manifest, num_lost: int) -> dict[str, object]:
    """What the dataset was built from, and that it was repaired (a new build differs by that)."""
    if num_lost == 0:
        return before.source
    repairs = [*before.source.get("repairs", ())]
    repairs.append({"digest_before": before.digest, "images_dropped": num_lost})
    return {**before.source, "repairs": repairs}


def _list_lost(folder: Path, staged: Path, damages: Sequence[ShardDamage]) -> None:
    path = folder / REPAIRED_FILE
    earlier = path.read_text(encoding="utf-8") if path.exists() else ""
    lines = [
        json.dumps(asdict(record), ensure_ascii=False) + "\n"
        for damage in damages
        for record in damage.lost
    ]
    (staged / REPAIRED_FILE).write_text(earlier + "".join(lines), encoding="utf-8")


def _describe(repair: Repair, damage: ShardDamage) -> list[str]:
    entry, lost = repair.before.shards[damage.number], damage.lost
    problem = f"{damage.problem}; " if damage.problem else ""
    lines = [f"  {entry.path}: {problem}{len(lost):,} of its {entry.num_images:,} images are lost"]
    if not lost:
        is_exact = not repair.is_dry_run and entry in repair.after.shards
        lines.append(
            "    restored byte for byte"
            if is_exact
            else "    every image decodes; if a picture has changed, nothing shows which"
        )
    if len(lost) < entry.num_images or not damage.problem:
        lines += [f"    {record.key}: {record.reason}" for record in lost[:_IMAGES_SHOWN]]
        if len(lost) > _IMAGES_SHOWN:
            lines.append(f"    and {len(lost) - _IMAGES_SHOWN:,} more")
    return lines


def _digest_line(before: Manifest, after: Manifest) -> str:
    if after.digest == before.digest:
        return f"  the data are as they were built: digest {after.digest}"
    return (
        f"  data digest {before.digest} is now {after.digest}:\n"
        "  a run that began with the old one cannot go on with these data"
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.repair",
        description="Write damaged shards of a dataset anew without the images that are lost, and "
        "update index and manifest. Not while a run reads the dataset.",
        epilog="Exit code 0: sound, or repaired; 1: damage found by --dry-run; 2: refused.",
        allow_abbrev=False,
    )
    parser.add_argument("dir", type=Path, help="folder with manifest.json and index.parquet")
    parser.add_argument("--dry-run", action="store_true", help="only list what is damaged")
    parser.add_argument(
        "--max-lost",
        type=float,
        default=DEFAULT_MAX_LOST,
        metavar="FRACTION",
        help=f"refuse to drop more than this share of the images (default {DEFAULT_MAX_LOST})",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="shards at a time (default: one per core)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Repair and print the result."""
    options = _parse(argv)
    if options.workers is not None and options.workers < 1:
        raise RefusedInput(f"--workers {options.workers}: give at least 1")
    if not 0 <= options.max_lost <= 1:
        raise RefusedInput(f"--max-lost {options.max_lost}: give 0 to 1")
    result = repair_dataset(
        options.dir,
        dry_run=options.dry_run,
        max_lost_fraction=options.max_lost,
        workers=options.workers,
    )
    print(result.text())  # noqa: T201
    return EXIT_DAMAGED if result.is_dry_run and result.damages else EXIT_DONE


if __name__ == "__main__":
    from configs.command_line import run_command

    run_command(main)
