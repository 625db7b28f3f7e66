"""Images/s, MFU and memory of pretraining on one GPU: ours against timm's, in turns.

    python benchmarks/gpu_pretrain.py [--sizes s,b,l,h] [--shards DIR] [--runs 3] [--json FILE]
    python benchmarks/gpu_pretrain.py --sizes l --variants compile,flash,cudnn --profile
    python benchmarks/gpu_pretrain.py --toy                     # tiny, on any machine: does it run?

Contestants, each in a fresh process, same model, batch, bf16, AdamW, clipping at norm 1:
- ours: the product's loop on DeepSpeed's engine (ZeRO 1, fp32 gradient sums and master weights);
- timm: timm's parts in the order of its train.py, which its wheel lacks (benchmarks/gpu_timm.py);
- timm_script: that script itself, where --timm-train names one; on real data.

Batches: `synthetic` ones lie on the device (ours as bytes, timm's normalised already); `real` ones
come from shards, ours by TrainLoader, timm's by its webdataset reader. Without --shards, pictures
that cost as much as photographs are generated once into datasets/gpu-benchmark.

MFU is three forward passes' FLOPs (models/flops.py) over the rate of large bf16 products, which is
measured on the same card in the same rounds. --variants are measured beside `plain`, of both where
both have them; --cases replaces all that by names such as `b:synthetic:ours:compile`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.gpu_case import MODELS, PLAIN, REAL_ONLY, VARIANTS, Case  # noqa: E402
from benchmarks.gpu_report import (  # noqa: E402
    MATMUL,
    SETTINGS,
    print_profiles,
    print_table,
    print_targets,
    report_of,
)
from benchmarks.loader_ours import generate_shards  # noqa: E402
from benchmarks.side_by_side import ROOT, attempt, write_json  # noqa: E402

GENERATED = ROOT / "datasets" / "gpu-benchmark"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what `--only` names."""
    from benchmarks import gpu_ours, gpu_timing, gpu_timm
    from benchmarks.gpu_case import architecture_of
    from models.flops import forward_flops_per_image

    if options.only == MATMUL:
        return gpu_timing.matmul_rate(options)
    case = Case.of(options.only)
    contestants = {"ours": gpu_ours, "timm": gpu_timm}
    classes = gpu_timm.num_classes(options.shards)
    with tempfile.TemporaryDirectory() as name:
        if case.who == "timm_script":
            found = gpu_timm.run_script(case, options, Path(name))
        else:
            opened = contestants[case.who].steps(case, options, Path(name))
            with case.attention(), opened as (run, parameters):
                found = gpu_timing.time_steps(run, case.batch_images(options), options)
            found["parameters"] = parameters
    flops = 3.0 * forward_flops_per_image(architecture_of(case, options, classes))
    found["tflops"] = flops * found["images_per_second"] / 1e12
    return found


def cases_of(options: argparse.Namespace) -> list[Case]:
    """What is to be measured, in order."""
    if options.cases:
        return list(options.cases)
    whos = ["ours", "timm", *(["timm_script"] if options.timm_train else [])]
    return [
        Case(size, data, who, variant)
        for size in options.sizes
        for data in options.data
        for variant in (PLAIN, *options.variants)
        for who in whos
        if variant in VARIANTS[who]
        and (data == "real" or not REAL_ONLY & {who, variant})
        # A loader's limit does not depend on what the model does with the batch.
        and (data == "synthetic" or variant in (PLAIN, *REAL_ONLY))
    ]


def measure_all(cases: list[Case], options: argparse.Namespace) -> dict[str, Any]:
    """Rounds of all cases; the report so far is written after each, should the rest be cut off."""
    results: dict[str, list[dict[str, Any]]] = {}
    failures: dict[str, str] = {}
    report = report_of(results, failures, options)
    for _ in range(options.runs):
        for name in (MATMUL, *(case.name for case in cases)):
            if name in failures:
                continue
            found = attempt(__file__, name, passed_on(options), timeout_seconds=options.timeout)
            if "failed" in found:
                failures[name] = found["failed"]
                continue
            results.setdefault(name, []).append(found)
            report = report_of(results, failures, options)
            write_json(options.json, report)
    return report


def passed_on(options: argparse.Namespace) -> list[str]:
    """The options of a child process."""
    words = [f"--{name.replace('_', '-')}={getattr(options, name)}" for name in SETTINGS]
    words.append(f"--shards={options.shards}")
    if options.batch:
        words.append("--batch=" + ",".join(f"{size}={n}" for size, n in options.batch.items()))
    if options.timm_train:
        words.append(f"--timm-train={options.timm_train}")
    return [*words, *(f"--{name}" for name in ("toy", "profile") if getattr(options, name))]


def batches_of(text: str) -> dict[str, int]:
    """`b=128,l=64` as a table."""
    try:
        table = {size: int(images) for size, images in (p.split("=") for p in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not like b=128,l=64") from None
    if unknown := table.keys() - MODELS.keys():
        raise argparse.ArgumentTypeError(f"no such size: {', '.join(sorted(unknown))}")
    return table


def parse(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    listed: Any = lambda text: text.split(",")  # noqa: E731
    add("--sizes", type=listed, default=list(MODELS), help="rows of the size table: s,b,l,h")
    add("--data", type=listed, default=["synthetic", "real"], help="synthetic,real")
    add("--variants", type=listed, default=[], help="beside plain; see the names in --cases")
    add("--cases", type=lambda t: [Case.of(n) for n in t.split(",")], help="names, no other cases")
    add("--batch", type=batches_of, default={}, help="images of a step, such as b=128,l=64")
    add("--shards", type=Path, help="folder of shards made by data_pipeline.build")
    add("--timm-train", type=Path, help="train.py of a checkout of pytorch-image-models")
    add("--runs", type=int, default=3, help="rounds (default 3)")
    add("--blocks", type=int, default=3, help="blocks timed a run; their median counts")
    add("--steps", type=int, default=50, help="steps of a block; ours logs at its end")
    add("--warm-steps", type=int, default=10, help="steps not timed before")
    add("--zero", type=int, default=1, help="ZeRO stage of ours")
    cores = len(os.sched_getaffinity(0))
    add("--workers", type=int, default=cores, help="loader's threads, or processes")
    add("--timeout", type=float, default=600, help="seconds that one measurement may take")
    add("--profile", action="store_true", help="also the costliest operations of each case")
    add("--toy", action="store_true", help="a tiny model at 32 px, few steps, any machine")
    add("--json", type=Path, help="file for the whole report")
    add("--only", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.toy:
        options.runs, options.blocks, options.steps, options.warm_steps = 1, 1, 2, 1
        options.workers = 1
    check(parser, options)
    return options


def check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse what is not there before anything slow starts."""
    known = {name for variants in VARIANTS.values() for name in variants}
    for what, given, possible in (
        ("--sizes", options.sizes, set(MODELS)),
        ("--data", options.data, {"synthetic", "real"}),
        ("--variants", options.variants, known - {PLAIN}),
    ):
        if unknown := set(given) - possible:
            parser.error(f"{what}: {', '.join(sorted(unknown))} is none of {sorted(possible)}")
    if options.timm_train is not None and not options.timm_train.is_file():
        parser.error(f"--timm-train: there is no {options.timm_train}")


def make_shards(options: argparse.Namespace, folder: Path) -> Path:
    """Pictures that cost as much as photographs, kept for the next time; digits for the toy."""
    if not options.toy:
        return generate_shards(GENERATED, shard_images=25)  # at least one shard a worker of timm's
    from data_pipeline.build import build_dataset

    build_dataset("digits", None, "train", folder / "digits", progress=False)
    return folder / "digits"


def main() -> None:
    """Measure all cases in turn, or the one that `--only` names."""
    options = parse(sys.argv[1:])
    if options.only:
        print(json.dumps(measure(options)), flush=True)
        # A peer's worker processes are daemons; waiting for their queues would take seconds.
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a child ends with this process
    for name in ("shards", "timm_train"):
        if getattr(options, name) is not None:
            setattr(options, name, getattr(options, name).resolve())
    cases = cases_of(options)
    with tempfile.TemporaryDirectory() as folder:
        options.shards = options.shards or make_shards(options, Path(folder))
        report = measure_all(cases, options)
    print_table(report, cases)
    if options.toy:
        print("A toy's numbers mean nothing but that everything runs.")
    else:
        print_targets(report, cases)
    print_profiles(report, cases, options.json)
    write_json(options.json, report)


if __name__ == "__main__":
    main()
