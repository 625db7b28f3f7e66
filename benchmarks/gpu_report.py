"""What `gpu_pretrain.py` says: medians, MFU, ratios to timm's, tables, the costliest operations."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.gpu_case import PLAIN, VARIANTS, Case
from benchmarks.side_by_side import circumstances, medians

MATMUL = "matmul"
SETTINGS = ("runs", "steps", "warm_steps", "blocks", "workers", "zero", "timeout")
TARGET_OVER_TIMM, TARGET_MFU = 1.2, 0.5


def report_of(
    results: dict[str, list[dict[str, Any]]],
    failures: dict[str, str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Medians, MFU, ratios to timm's, and the circumstances."""
    report = medians(results)
    matmul = report.get(MATMUL, {}).get("tflops")
    for name, row in report.items():
        if name == MATMUL:
            continue
        if matmul:
            row["mfu"] = row["tflops"] / matmul
        case = Case.of(name)
        peers = (case.variant, PLAIN) if case.variant in VARIANTS["timm"] else (PLAIN,)
        for peer in peers:
            other = report.get(Case(case.size, case.data, "timm", peer).name)
            if other:
                key = "over_timm" if peer == case.variant else "over_plain_timm"
                row[key] = row["images_per_second"] / other["images_per_second"]
    packages = ["torch", "torchvision", "deepspeed", "timm", "webdataset"]
    names = (*SETTINGS, "toy")
    return {
        **report,
        "failures": failures,
        "settings": {name: getattr(options, name) for name in names},
        "circumstances": {**circumstances(packages), "gpu": report.get(MATMUL, {}).get("device")},
    }


def print_table(report: dict[str, Any], cases: list[Case]) -> None:
    """What the page of docs/benchmarks shows."""
    if MATMUL in report:
        print(
            f"bf16 products on {report[MATMUL]['device']}: {report[MATMUL]['tflops']:.4g} TFLOP/s"
        )
    print("| size:data:who:variant | batch | images/s | x timm | MFU | peak GiB |")
    print("|---|---|---|---|---|---|")
    for case in cases:
        row = report.get(case.name)
        if row is None:
            print(f"| {case.name} | | {report['failures'].get(case.name, 'not reached')} | | | |")
            continue
        low, high = row["images_per_second_range"]
        ratio = row.get("over_timm", row.get("over_plain_timm"))
        mfu, peak = row.get("mfu"), row.get("peak_gib")
        print(
            f"| {case.name} | {row['batch_images']} "
            f"| {row['images_per_second']:.0f} ({low:.0f}-{high:.0f}) "
            f"| {'-' if ratio is None else f'{ratio:.2f}'} "
            f"| {'-' if mfu is None else f'{mfu:.1%}'} "
            f"| {'-' if peak is None else f'{peak:.1f}'} |"
        )


def print_targets(report: dict[str, Any], cases: list[Case]) -> None:
    """Whether what was measured is what was aimed at."""
    for case in cases:
        row = report.get(case.name, {})
        if (case.who, case.variant) == ("ours", PLAIN) and "over_timm" in row:
            reached = "reached" if row["over_timm"] >= TARGET_OVER_TIMM else "missed"
            print(f"target {TARGET_OVER_TIMM} x timm, {case.size}, {case.data}: {reached}")
        if case.name == "l:synthetic:ours:plain" and "mfu" in row:
            reached = "reached" if row["mfu"] >= TARGET_MFU else "missed"
            print(f"target {TARGET_MFU:.0%} MFU, l: {reached}")


def print_profiles(report: dict[str, Any], cases: list[Case], path: Path | None) -> None:
    """The costliest operations of each case; beside the JSON, what a run's profile would say."""
    for case in cases:
        row = report.get(case.name, {})
        if "kernels" not in row:
            continue
        print(f"\n{case.name}\n| ms a step | share | calls | operation |\n|---|---|---|---|")
        for kernel in row["kernels"][:10]:
            print(
                f"| {kernel['milliseconds_per_step']:.2f} | {kernel['share']:.1%} "
                f"| {kernel['calls_per_step']:.0f} | {kernel['name'][:80]} |"
            )
        if path is not None:
            text = path.with_suffix(f".{case.name.replace(':', '-')}.profile.txt")
            text.write_text(row["profile"], encoding="utf-8")
