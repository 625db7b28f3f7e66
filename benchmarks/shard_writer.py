"""Image files into shards: images per second, against webdataset.ShardWriter and tar.

    python benchmarks/shard_writer.py [--small DIR] [--large DIR] [--runs 5] [--json FILE]

Contestants, one process each, same files in the same order, 1000 images a shard:
- vitrain: `data_pipeline.build --check quick`, all after the listing: shards, index, manifest;
- vitrain_decode: the same with every image decoded, as is the default;
- vitrain_eightfold: the same as vitrain over a listing that names every file eight times: its
  memory against vitrain's tells how that depends on the number of images;
- shard_writer: `webdataset.ShardWriter` as its documentation uses it; it checks nothing;
- tar_writer: `webdataset.TarWriter` with a whole-second mtime, which avoids pax headers;
- tar: `tar cf` of the same files into one archive, without labels.

Not timed: imports, listing the files, removing the output. Files are read once before, so they come
from memory. Each large file is listed --large-times times, so that few photographs suffice. --small
and --large are folders that hold folders of images; without them fractals are generated once into
datasets/writer-benchmark (about two minutes).
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.side_by_side import ROOT, circumstances, compare, medians, write_json  # noqa: E402

GENERATED = ROOT / "datasets" / "writer-benchmark"
SHARD_IMAGES = 1000
Contestant = Callable[[Any, Path], None]


def vitrain(source: Any, output: Path, **options: Any) -> None:
    """Our writer in this process, which like the others copies images without decoding them."""
    from data_pipeline.build import build_dataset

    build_dataset(
        *(source, None, source.split, output),
        **{"workers": 1, "shuffle": False, "progress": False, "check": "quick", **options},
    )


def vitrain_decode(source: Any, output: Path) -> None:
    """Our writer with its default, which decodes every image."""
    vitrain(source, output, check="decode")


def vitrain_eightfold(source: Any, output: Path) -> None:
    """Our writer over a listing that `measure` made longer."""
    vitrain(source, output)


def shard_writer(source: Any, output: Path) -> None:
    """The writer that webdataset's documentation shows."""
    import webdataset

    output.mkdir()
    pattern = str(output / "%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=SHARD_IMAGES, verbose=0) as writer:
        for number, (file, label) in enumerate(zip(source.files, source.labels, strict=True)):
            with open(source.root / file, "rb") as image:
                data = image.read()
            writer.write({"__key__": f"{number:09d}", "jpg": data, "cls": str(label)})


def tar_writer(source: Any, output: Path) -> None:
    """The tar writer of webdataset where it writes one header a member."""
    import webdataset

    output.mkdir()
    num_images = len(source.files)
    for start in range(0, num_images, SHARD_IMAGES):
        with (
            open(output / f"{start // SHARD_IMAGES:06d}.tar", "wb") as file,
            webdataset.TarWriter(file, mtime=0, encoder=False) as writer,
        ):
            for number in range(start, min(start + SHARD_IMAGES, num_images)):
                with open(source.root / source.files[number], "rb") as image:
                    data = image.read()
                label = str(source.labels[number]).encode()
                writer.write({"__key__": f"{number:09d}", "jpg": data, "cls": label})


def tar(source: Any, output: Path) -> None:
    """The program, told the files by a list."""
    output.mkdir()
    listing = output / "list"
    listing.write_text("\n".join(source.files))
    # A file that is listed again is a file again, as it is for the others, and no hard link.
    command = [
        "tar",
        "-c",
        "-h",
        "--hard-dereference",
        "-f",
        str(output / "all.tar"),
        "-C",
        str(source.root),
    ]
    subprocess.run([*command, "-T", str(listing)], check=True)


CONTESTANTS: dict[str, Contestant] = {
    function.__name__: function
    for function in (vitrain, vitrain_decode, vitrain_eightfold, shard_writer, tar_writer, tar)
}
IMPORTS = {
    "vitrain": ("data_pipeline.build", "tqdm", "xxhash"),
    "vitrain_eightfold": ("data_pipeline.build", "tqdm", "xxhash"),
    "vitrain_decode": ("data_pipeline.build", "tqdm", "xxhash", "data_pipeline.decode"),
    "shard_writer": ("webdataset",),
    "tar_writer": ("webdataset",),
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time one contestant over one folder of images."""
    from data_pipeline.sources import open_source

    for module in IMPORTS.get(options.only, ()):
        __import__(module)
    source: Any = open_source("image-folder", options.folder, options.folder.name)
    times = options.times * (8 if options.only == "vitrain_eightfold" else 1)
    labels = np.concatenate([source.labels] * times)
    source = replace(source, files=source.files * times, labels=labels)
    scratch = Path(tempfile.mkdtemp(dir=options.scratch))
    before = resident_megabytes(reset_peak=True)
    began, cpu_began = time.perf_counter(), cpu_seconds()
    try:
        CONTESTANTS[options.only](source, scratch / "out")
        seconds, cpu = time.perf_counter() - began, cpu_seconds() - cpu_began
        written = sum(path.stat().st_size for path in scratch.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(scratch)
    count = len(source.files)
    return {
        "images_per_second": count / seconds,
        "cpu_microseconds_per_image": 1e6 * cpu / count,
        "memory_growth_megabytes": resident_megabytes() - before,
        "megabytes_written": written / 1e6,
        "num_images": count,
    }


def cpu_seconds() -> float:
    """Processor time of this process and of programs that it ran."""
    return sum(
        sum(resource.getrusage(whose)[:2])
        for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def resident_megabytes(*, reset_peak: bool = False) -> float:
    """Most memory that this process held since the peak was last reset (Linux)."""
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in lines if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024


def generate(folder: Path, count: int, px: int) -> Path:
    """Write JPEG fractals into 10 class folders; once."""
    from data_pipeline.sources import FractalOptions, FractalSource

    done = folder / "complete"
    if done.exists():
        return folder / "train"
    pictures = FractalOptions(classes=10, images_per_class=count // 10, px=px, image_format="jpeg")
    source = FractalSource("train", pictures)
    for number, label in enumerate(source.labels.tolist()):
        path = folder / f"train/{label}/{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.images(slice_of(number))[0].read())
    done.touch()
    return folder / "train"


def slice_of(number: int) -> Any:
    """One row, as sources are asked for rows."""
    return np.array([number])


def parse(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--small", type=Path, metavar="DIR", help="small images, such as CIFAR-10 as files")
    add("--large", type=Path, metavar="DIR", help="photographs")
    add("--sets", nargs="+", choices=("small", "large"), default=["small", "large"])
    add("--scratch", type=Path, help="where shards are written (default: the temporary folder)")
    add("--json", type=Path, help="file for the whole report")
    add("--runs", type=int, default=5, help="rounds (default 5)")
    add("--contestants", nargs="+", choices=CONTESTANTS, default=[*CONTESTANTS])
    add("--large-times", type=int, default=10, help="how often each is listed (default 10)")
    add("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    add("--times", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def show(name: str, folder: Path, report: dict[str, Any], contestants: list[str]) -> None:
    """Print one table."""
    first = report[contestants[0]]
    print(f"\n{name}: {folder}, {first['num_images']:,.0f} images")
    print(
        "| writer | images/s (lowest-highest) | x ShardWriter | CPU us an image | memory MB | MB |"
    )
    print("|---|---|---|---|---|---|")
    base = report.get("shard_writer", first)["images_per_second"]
    for contestant in contestants:
        row = report[contestant]
        low, high = row["images_per_second_range"]
        print(
            f"| {contestant} | {row['images_per_second']:,.0f} ({low:,.0f}-{high:,.0f}) "
            f"| {row['images_per_second'] / base:.2f} | {row['cpu_microseconds_per_image']:.1f} "
            f"| {row['memory_growth_megabytes']:.1f} | {row['megabytes_written']:.1f} |"
        )


def main() -> None:
    """Measure all contestants in turn on each set, or the one that `--only` names."""
    options = parse(sys.argv[1:])
    if options.only:
        print(json.dumps(measure(options)), flush=True)
        return
    report: dict[str, Any] = {}
    for name, (count, px) in {"small": (50_000, 32), "large": (2_000, 500)}.items():
        if name not in options.sets:
            continue
        folder = (getattr(options, name) or generate(GENERATED / name, count, px)).resolve()
        for path in folder.rglob("*"):
            if path.is_file():
                path.read_bytes()
        times = options.large_times if name == "large" else 1
        arguments = [f"--folder={folder}", f"--times={times}"]
        if options.scratch:
            arguments.append(f"--scratch={options.scratch.resolve()}")
        results = compare(
            __file__, options.contestants, arguments, runs=options.runs, timeout_seconds=900
        )
        report[name] = medians(results)
        show(name, folder, report[name], options.contestants)
    report["circumstances"] = circumstances(["webdataset", "pyarrow", "pillow", "xxhash"])
    write_json(options.json, report)


if __name__ == "__main__":
    main()
