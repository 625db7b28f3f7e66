"""The plan as text for people."""

from __future__ import annotations

import re
from typing import Any

GIB = 2**30
_COLUMNS = (
    "ZeRO  checkpointing  weights  gradients  optimizer  average  buffers    host  activations  "
    "micro batch"
)


def plan_text(plan: dict[str, Any]) -> str:
    """The sections of `launch.planner.estimate.estimate`, one below the other."""
    parts = [_heading(plan), _memory(plan), _choice(plan), _running(plan), _assumptions(plan)]
    return "\n\n".join(parts) + "\n"


def _heading(plan: dict[str, Any]) -> str:
    model, gpus = plan["model"], plan["gpus"]
    return "\n".join(
        [
            f"ViT-{model['size'].upper()}: {model['parameters']:,} parameters, "
            f"{model['tokens']} tokens, {model['num_classes']:,} classes; "
            f"{model['forward_flops_per_image'] / 1e9:.1f} GFLOP forward, "
            f"{model['training_flops_per_image'] / 1e9:.1f} GFLOP training an image",
            f"{gpus['number']} x {gpus['name']} on {gpus['nodes']} "
            f"node{'s' if gpus['nodes'] > 1 else ''}, {gpus['precision']}: "
            f"{gpus['peak_tflops']:g} TFLOP/s and {gpus['usable_gib']:.1f} of "
            f"{gpus['memory_gib']:g} GiB usable each ({gpus['source']})",
        ]
    )


def _memory(plan: dict[str, Any]) -> str:
    lines = [
        "Memory of one GPU in GiB (host: beside it); activations in MiB an image; micro batch: the "
        "most",
        "images of a forward pass that fit, and the most of those that divide a GPU's share of the "
        "batch",
        _COLUMNS,
        re.sub(r"\S(?: ?\S)*", lambda name: "-" * len(name[0]), _COLUMNS),
    ]
    for row in plan["memory"]["settings"]:
        parts = ("weights", "gradients", "optimizer", "average", "buffers", "host")
        gib = [f"{row[f'{name}_bytes'] / GIB:.2f}" for name in parts]
        micro = f"{row['largest_micro_images']} / {row['best_micro_images']}"
        activations = f"{row['activation_bytes_per_image'] / 2**20:.1f}"
        every = _checkpointing(row["checkpoint_blocks"])
        lines.append(
            f"{row['zero_stage']:>4}  {every:>13}  {gib[0]:>7}  {gib[1]:>9}  {gib[2]:>9}  "
            f"{gib[3]:>7}  {gib[4]:>7}  {gib[5]:>6}  {activations:>11}  {micro:>11}"
        )
    return "\n".join(lines)


def _checkpointing(every: int) -> str:
    if every < 2:
        return "every block" if every else "no"
    return f"1 block in {every}"


def _choice(plan: dict[str, Any]) -> str:
    memory = plan["memory"]
    configured, best = memory["configured"], memory["recommended"]
    verdict = "fits" if configured["fits"] else "DOES NOT FIT"
    lines = [f"The config: {_setting(configured)}: {verdict}"]
    if best is None:
        lines.append("Recommended: nothing fits; more GPUs, or --zero.offload-optimizer")
    else:
        every = best["checkpoint_blocks"]
        lines.append(
            f"Recommended: {_setting(best)}  "
            f"(--zero.stage {best['zero_stage']} --batch.micro-images {best['micro_images']}"
            + (f" --model.checkpoint-blocks {every})" if every else ")")
        )
        if every and not configured["checkpoint_blocks"]:
            lines.append("(nothing fits without checkpointing, which takes a quarter of the speed)")
    return "\n".join(lines)


def _setting(chosen: dict[str, Any]) -> str:
    return (
        f"ZeRO {chosen['zero_stage']}, micro batch {chosen['micro_images']} x "
        f"{chosen['accumulation_steps']} accumulated, {chosen['total_bytes'] / GIB:.1f} GiB "
        f"({chosen['activations_bytes'] / GIB:.1f} of activations)"
    )


def _running(plan: dict[str, Any]) -> str:
    rate, length, network = plan["throughput"], plan["schedule"], plan["network"]
    data, saving, energy = plan["data"], plan["checkpoint"], plan["energy"]
    rows = {
        "speed": f"{rate['images_per_second']:,.0f} images/s at {rate['mfu']:.0%} MFU "
        f"({rate['images_per_second_per_gpu']:,.0f} a GPU), {rate['step_seconds']:.2f} s a step; "
        f"{rate['images_per_second_with_checkpointing']:,.0f} with activation checkpointing",
        "schedule": f"{length['total_steps']:,} steps, {length['images']:,} images "
        f"({length['epochs']:.1f} epochs): {length['days']:.1f} days, "
        f"{length['gpu_hours']:,.0f} GPU hours",
        "data": f"each node {data['images_per_second_per_node']:,.0f} images/s, "
        f"{data['megabytes_per_second_per_node']:,.0f} MB/s, "
        f"{data['decode_cores_per_node']:.1f} cores for decoding",
        "network": f"{network['bytes_sent_per_gpu_per_step'] / 1e9:.1f} GB sent by each GPU a "
        f"step: {network['gigabytes_per_second_per_gpu']:.1f} GB/s hide it behind computing",
        "checkpoints": f"{saving['bytes'] / 1e9:.1f} GB each, {saving['write_seconds']:.1f} s to "
        f"write, training stands still for {saving['stall_seconds']:.2f} s; {saving['number']:,} "
        f"of them: {saving['share_of_time']:.2%} of the time; {saving['disk_bytes'] / 1e9:.0f} GB "
        f"of disk; {saving['host_bytes_per_node'] / GIB:.1f} GiB of each "
        "node's memory",
        "energy": f"{energy['kilowatts']:,.1f} kW, {energy['kilowatt_hours']:,.0f} kWh, "
        f"{energy['co2_kg']:,.0f} kg CO2",
    }
    return "\n".join(f"{name:<12} {text}" for name, text in rows.items())


def _assumptions(plan: dict[str, Any]) -> str:
    lines = ["Assumed (each is an option):"]
    for name, told in plan["assumptions"].items():
        option = "--" + name.replace("_", "-")
        value = f"{told['value']:.12g}"
        lines.append(f"  {option + ' ' + value:<32} {told['meaning']}")
        lines.append(f"  {'':<32} ({told['source']})")
    return "\n".join(lines)
