"""Timing steps on a device: images per second, memory, costliest kernels, the rate of products."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu_case import compute_device

GIB = 2**30
PROFILED_STEPS = 3
MATRIX_SIDE = 8192
TOY_MATRIX_SIDE = 256
TOP_KERNELS = 20


def time_steps(
    run: Callable[[int], None], images: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Run blocks of steps after a warm-up.

    Args:
        run: Makes so many steps of `images` images each.
        images: Of a step.
        options: Of gpu_pretrain.py.

    Returns:
        Median rate of the blocks, peak memory of them in GiB (0 on a CPU), and with `--profile` the
        operations that took longest.
    """
    is_gpu = compute_device().type == "cuda"
    run(options.warm_steps)
    if is_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(options.blocks):
        began = time.perf_counter()
        run(options.steps)
        if is_gpu:
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() - began) / options.steps)
    step = statistics.median(seconds)
    found: dict[str, Any] = {
        "images_per_second": images / step,
        "milliseconds_per_step": 1000 * step,
        "batch_images": images,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB if is_gpu else 0.0,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB if is_gpu else 0.0,
    }
    if options.profile:
        found["kernels"], found["profile"] = profile_steps(run, is_gpu)
    return found


def profile_steps(
    run: Callable[[int], None], is_gpu: bool
) -> tuple[list[dict[str, float | str]], str]:
    """The operations of a few steps that take longest, and the summary that a run would write."""
    from training.profile_summary import summary_of

    activities = [torch.profiler.ProfilerActivity.CPU]
    if is_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run(PROFILED_STEPS)
        if is_gpu:
            torch.cuda.synchronize()
    times = [
        (e.self_device_time_total if is_gpu else e.self_cpu_time_total, e.count, e.key)
        for e in profile.key_averages()
        # On a GPU only kernels: what launches them would count their time once more.
        if not is_gpu or e.device_type == torch.autograd.DeviceType.CUDA
    ]
    whole = sum(microseconds for microseconds, _, _ in times)
    kernels: list[dict[str, float | str]] = [
        {
            "name": key,
            "calls_per_step": count / PROFILED_STEPS,
            "milliseconds_per_step": microseconds / 1000 / PROFILED_STEPS,
            "share": microseconds / whole,
        }
        for microseconds, count, key in sorted(times, reverse=True)[:TOP_KERNELS]
    ]
    return kernels, summary_of(profile, PROFILED_STEPS)


def matmul_rate(options: argparse.Namespace) -> dict[str, Any]:
    """TFLOP/s of large bf16 products on this very device: what model FLOPs are compared with."""
    device = compute_device()
    side = TOY_MATRIX_SIDE if options.toy else MATRIX_SIDE
    left, right = (torch.randn((side, side), device=device).to(torch.bfloat16) for _ in range(2))

    def multiply(times: int) -> None:
        for _ in range(times):
            torch.mm(left, right)

    repeats = 2 if options.toy else 100
    multiply(repeats)
    rates = []
    for _ in range(5):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        multiply(repeats)
        if device.type == "cuda":
            torch.cuda.synchronize()
        rates.append(2 * side**3 * repeats / (time.perf_counter() - began) / 1e12)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {"tflops": statistics.median(rates), "device": name}
