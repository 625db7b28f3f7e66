"""How many planted copies `data_pipeline.leaks` finds, and what else it lists.

    python benchmarks/leak_accuracy.py --originals DIR --unrelated DIR [--json FILE]

The images below `--originals` become a test set; a copy of each kind is made of each of them, and
these are the training set in which they are sought. False alarms are pairs of an original and an
image below `--unrelated`, which should be another collection altogether. Everything goes through
shards and files, as in use. Both folders are searched recursively for .jpg, .jpeg and .png.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.planted_copies import COPIES, CopySource  # noqa: E402
from benchmarks.side_by_side import circumstances, write_json  # noqa: E402
from data_pipeline.dataset import ShardedDataset, open_dataset  # noqa: E402
from data_pipeline.leaks.search import KINDS, Match, find_leaks  # noqa: E402

SUFFIXES = {".jpg", ".jpeg", ".png"}
THRESHOLDS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15)


def image_files(folder: Path, limit: int | None, seed: int) -> list[str]:
    """Paths below a folder, sorted; a random choice of `limit` of them."""
    found = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise SystemExit(f"{folder} holds no .jpg, .jpeg or .png file")
    if limit is not None and limit < len(found):
        found = sorted(random.Random(seed).sample(found, limit))
    return found


def shards_of(files: Sequence[str], folder: Path) -> ShardedDataset:
    """The files, as they are, as a dataset of one class; row i is file i."""
    from data_pipeline.sources.source import FileSource

    labels = np.zeros(len(files), dtype=np.int64)
    source = FileSource(folder.name, "all", ("image",), labels, Path("/"), list(files))
    return built(source, folder)


def built(source: Any, folder: Path) -> ShardedDataset:
    """The dataset of a source, in its order."""
    from data_pipeline.build import build_dataset

    summary = build_dataset(source, None, source.split, folder, shuffle=False)
    if summary.skipped:
        raise SystemExit(f"{folder.name}: {summary.skipped[0].where}: {summary.skipped[0].reason}")
    return open_dataset(folder)


def found_in(train: ShardedDataset, held_out: Any, threads: int, title: str) -> list[Match]:
    """All matches up to the largest threshold."""
    from tqdm import tqdm

    matches: list[Match] = []
    with tqdm(total=train.num_images, desc=title, unit=" images", disable=None) as bar:
        for searched in find_leaks(train, held_out, max_distance=THRESHOLDS[-1], threads=threads):
            matches += searched.matches
            bar.update(searched.num_images)
    return matches


def recalls(matches: Sequence[Match], num_originals: int) -> dict[str, dict[str, float]]:
    """For each kind of copy, the share that is found at each threshold, and as exact."""
    distance = np.full((len(COPIES), num_originals), np.inf)
    is_exact = np.zeros(distance.shape, dtype=bool)
    for match in matches:
        kind, number = divmod(match.train_row, num_originals)
        if match.image == number:
            distance[kind, number] = match.distance
            is_exact[kind, number] = match.kind == KINDS[0]
    table = {}
    for kind, (name, *_) in enumerate(COPIES):
        table[name] = {str(limit): float((distance[kind] <= limit).mean()) for limit in THRESHOLDS}
        table[name]["exact"] = float(is_exact[kind].mean())
    return table


def alarms(distances: NDArray[np.float64], num_pairs: int) -> dict[str, Any]:
    """At each threshold: pairs listed, and per million pairs."""
    counts = {str(limit): int((distances <= limit).sum()) for limit in THRESHOLDS}
    per_million = {limit: 1e6 * count / num_pairs for limit, count in counts.items()}
    return {"num_pairs": num_pairs, "listed": counts, "per_million": per_million}


def look_alikes(matches: Sequence[Match], num_originals: int) -> dict[str, Any]:
    """Pairs of an unchanged original and another original: twins in the data, or false alarms."""
    nearest: dict[tuple[int, int], float] = {}
    for match in matches:
        pair = (min(match.train_row, match.image), max(match.train_row, match.image))
        if match.train_row < num_originals and pair[0] != pair[1]:
            nearest[pair] = min(match.distance, nearest.get(pair, 2.0))
    num_pairs = num_originals * (num_originals - 1) // 2
    return alarms(np.array(list(nearest.values())), num_pairs)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build, search, count."""
    from data_pipeline.leaks.held_out import read_held_out

    originals = image_files(options.originals, options.max_originals, options.seed)
    unrelated = image_files(options.unrelated, options.max_unrelated, options.seed)
    test = shards_of(originals, folder / "originals")
    held_out = read_held_out([test], threads=options.threads, on_images=lambda _: None)
    assert np.array_equal(held_out.row, np.arange(test.num_images)), "every original is readable"
    planted = found_in(
        built(CopySource(originals), folder / "copies"), held_out, options.threads, "copies"
    )
    strangers = shards_of(unrelated, folder / "unrelated")
    strange = found_in(strangers, held_out, options.threads, "unrelated")
    if options.keep_pairs:
        lines = [
            f"{match.distance:.4f}\t{match.kind}\t{unrelated[match.train_row]}"
            f"\t{originals[match.image]}\n"
            for match in sorted(strange, key=lambda match: match.distance)
        ]
        options.keep_pairs.write_text("".join(lines))
    num_pairs = test.num_images * strangers.num_images
    return {
        "num_originals": test.num_images,
        "num_plain_originals": sum(held_out.num_plain),
        "recall": recalls(planted, test.num_images),
        "targets": {name: target for name, _, _, target in COPIES},
        "false_alarms": alarms(np.array([match.distance for match in strange]), num_pairs),
        "look_alikes": look_alikes(planted, test.num_images),
        "settings": {
            name: str(value)
            for name, value in vars(options).items()
            if name not in ("json", "keep_pairs")
        },
        "circumstances": circumstances(["torch", "torchvision", "faiss-cpu", "pillow", "numpy"]),
    }


def show(report: dict[str, Any]) -> None:
    """The tables as Markdown."""
    columns = [str(limit) for limit in THRESHOLDS]
    print(
        f"| recall of {report['num_originals']:,} copies | target | " + " | ".join(columns) + " |"
    )
    print("|---" * (len(columns) + 2) + "|")
    for name, values in report["recall"].items():
        target = report["targets"][name]
        shown = " | ".join(f"{values[column]:.4f}" for column in columns)
        print(f"| {name} | {'-' if target is None else target} | {shown} |")
    exact = report["recall"][COPIES[0][0]]["exact"]
    print(f"\nexact among copies of the same pixels: {exact:.4f}; plain originals: ", end="")
    print(f"{report['num_plain_originals']}\n")
    print("| pairs listed | pairs in all | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for name in ("false_alarms", "look_alikes"):
        found = report[name]
        shown = " | ".join(
            f"{found['listed'][column]:,} ({found['per_million'][column]:.3g})"
            for column in columns
        )
        print(f"| {name} (per million) | {found['num_pairs']:,} | {shown} |")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--originals", type=Path, required=True, help="folder of images to be copied")
    add("--unrelated", type=Path, required=True, help="folder of images of another collection")
    add("--max-originals", type=int, help="a random choice of this many (default: all)")
    add("--max-unrelated", type=int, help="a random choice of this many (default: all)")
    add("--seed", type=int, default=0, help="of the random choices")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads")
    add("--keep-pairs", type=Path, help="text file for the false alarms, nearest first")
    add("--json", type=Path, help="file for the whole report")
    return parser.parse_args(argv)


def main() -> None:
    """Measure and print."""
    options = parse(sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="leak-accuracy-") as folder:
        report = measure(options, Path(folder))
    show(report)
    write_json(options.json, report)


if __name__ == "__main__":
    main()
