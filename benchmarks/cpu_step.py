"""What precision and attention kernel cost on this CPU: one training step of a small ViT.

    python benchmarks/cpu_step.py [--runs 3] [--json FILE]

Contestants: fp32 and bf16, each with PyTorch's fused attention and with timm's unfused one. The
model is Ti/4 at 32 px, batch 64, one thread (one rank's share of a two-core machine); a step is
forward, backward and AdamW. It decides two defaults: attention by device
(models.zoo.choose_attention) and what `precision: auto` means (training.precision).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.side_by_side import circumstances, compare, medians, write_json  # noqa: E402

CONTESTANTS = ("fp32_unfused", "fp32_fused", "bf16_unfused", "bf16_fused")


def measure(name: str, steps: int) -> dict[str, float]:
    """Median milliseconds of one step, after two that are not counted."""
    import torch
    from timm.layers import set_fused_attn

    from models.zoo import Architecture, build_model
    from training.losses import soft_targets, softmax_cross_entropy

    precision, attention = name.split("_")
    torch.set_num_threads(1)
    set_fused_attn(attention == "fused")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    architecture = Architecture(
        depth=12, width=192, heads=3, mlp_dim=768, patch_px=4, image_px=(32, 32), num_classes=200
    )
    model = build_model(architecture, seed=0).to(dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.randn(64, 3, 32, 32).to(dtype)
    targets = soft_targets(torch.arange(64), 200, 0.0)
    seconds = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        softmax_cross_entropy(model(images).float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - began)
    step = statistics.median(seconds[2:])
    return {"step_milliseconds": 1000 * step, "images_per_second": 64 / step}


def main() -> None:
    """Measure all contestants, or the one that `--only` names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--steps", type=int, default=8, help="steps counted a run (default 8)")
    parser.add_argument("--json", type=Path, help="file for the whole report")
    parser.add_argument("--only", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options.steps)))
        return
    arguments = ["--steps", str(options.steps)]
    results = compare(__file__, CONTESTANTS, arguments, runs=options.runs, timeout_seconds=300)
    report = {**medians(results), "circumstances": circumstances(["torch", "timm"])}
    base = report["fp32_fused"]["step_milliseconds"]
    print("| contestant | ms a step | images/s | faster than fp32 fused |\n|---|---|---|---|")
    for name in CONTESTANTS:
        row = report[name]
        row["ratio"] = base / row["step_milliseconds"]
        print(
            f"| {name} | {row['step_milliseconds']:.0f} | {row['images_per_second']:.0f} "
            f"| {row['ratio']:.2f} x |"
        )
    write_json(options.json, report)


if __name__ == "__main__":
    main()
