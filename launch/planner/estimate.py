"""From a config, a kind of GPU and their number to everything a run needs, as plain values."""

from __future__ import annotations

import dataclasses
from typing import Any

from configs.deepspeed_options import deepspeed_options
from launch.planner.memory import Ground, Setting, check_offload, recommend
from launch.planner.request import Request
from launch.planner.running import Run, checkpoints, data, energy, network, schedule, throughput
from models.flops import forward_flops_per_image
from models.vit import num_recomputed
from models.zoo import Architecture, build_model
from pretrain.activation_memory import Passes, activation_memory
from pretrain.state_memory import checkpoint_bytes

GIB = 2**30


def estimate(request: Request) -> dict[str, Any]:
    """Everything the planner says, nested as `--json` prints it."""
    config, options = request.config, request.options
    architecture = Architecture.from_config(config.model, request.training_set.num_classes)
    model = build_model(architecture, device="meta")
    sizes = tuple(parameter.numel() for parameter in model.parameters())
    deepspeed = deepspeed_options(
        config,
        micro_images=request.micro_images,
        accumulation_steps=request.accumulation_steps,
        precision=request.precision,
    )
    check_offload(deepspeed)
    assumed = options.assumptions
    usable = (request.gpu.memory_gib - assumed.reserve_gib) * (1 - assumed.fragmentation) * GIB
    ground = Ground(
        parameter_sizes=sizes,
        activations={
            every: activation_memory(Passes(config, architecture, request.precision, every))
            for every in sorted({0, 1, config.model.checkpoint_blocks})
        },
        deepspeed=deepspeed,
        average=config.optim.ema_decay is not None,
        num_gpus=options.gpus,
        rank_images=request.micro_images * request.accumulation_steps,
        usable_bytes=usable,
    )
    forward_flops = forward_flops_per_image(architecture)
    return {
        "model": {
            "size": config.model.size,
            "parameters": sum(sizes),
            "tokens": architecture.num_tokens,
            "num_classes": architecture.num_classes,
            "forward_flops_per_image": forward_flops,
            "training_flops_per_image": 3 * forward_flops,
        },
        "gpus": _gpus(request, usable),
        **_memory_and_time(request, ground, architecture),
        "assumptions": _assumptions(request),
    }


def _memory_and_time(
    request: Request, ground: Ground, architecture: Architecture
) -> dict[str, Any]:
    options, config = request.options, request.config
    num_parameters, depth = sum(ground.parameter_sizes), architecture.depth
    settings = ground.settings()
    configured = ground.setting(config.zero.stage, config.model.checkpoint_blocks)
    best = recommend(settings, options.assumptions.good_micro_images)
    run = Run(
        assumed=options.assumptions,
        num_gpus=options.gpus,
        num_nodes=options.gpus // options.gpus_per_node,
        peak_flops=request.peak_tflops * 1e12,
        gpu_watts=request.gpu.watts,
        training_flops_per_image=3 * forward_flops_per_image(architecture),
        global_images=config.batch.global_images,
        total_steps=request.total_steps,
        accumulation_steps=request.accumulation_steps,
        recomputed=num_recomputed(depth, config.model.checkpoint_blocks) / depth,
    )
    rate = throughput(run)
    size = checkpoint_bytes(num_parameters, ground.average)
    saving = checkpoints(run, size, config.checkpoint)
    length = schedule(run, request.training_set.num_images, saving["stall_seconds_in_all"])
    return {
        "memory": {
            "usable_bytes": round(ground.usable_bytes),
            "settings": [setting.as_json() for setting in settings],
            "configured": _chosen(configured, request.micro_images, ground.rank_images),
            "recommended": best and _chosen(best, best.best_micro_images, ground.rank_images),
        },
        "throughput": rate,
        "schedule": length,
        "data": data(run, request.training_set.bytes_per_image),
        "network": network(run, num_parameters, config.zero.stage, ground.deepspeed),
        "checkpoint": saving,
        "energy": energy(run, length["days"]),
    }


def _chosen(setting: Setting, micro_images: int, rank_images: int) -> dict[str, Any]:
    return {
        "zero_stage": setting.stage,
        "activation_checkpointing": setting.checkpoint_blocks > 0,
        "checkpoint_blocks": setting.checkpoint_blocks,
        "micro_images": micro_images,
        "accumulation_steps": rank_images // micro_images,
        "activations_bytes": round(setting.activations.peak(micro_images)),
        "total_bytes": round(setting.total(micro_images)),
        "fits": setting.fits(micro_images),
    }


def _gpus(request: Request, usable_bytes: float) -> dict[str, Any]:
    options, gpu = request.options, request.gpu
    return {
        "name": gpu.name,
        "number": options.gpus,
        "nodes": options.gpus // options.gpus_per_node,
        "precision": request.precision,
        "peak_tflops": request.peak_tflops,
        "memory_gib": gpu.memory_gib,
        "usable_gib": usable_bytes / GIB,
        "watts": gpu.watts,
        "source": gpu.source,
    }


def _assumptions(request: Request) -> dict[str, Any]:
    assumed = request.options.assumptions
    told = {
        field.name: {
            "value": getattr(assumed, field.name),
            "meaning": field.metadata["meaning"],
            "source": field.metadata["source"]
            if getattr(assumed, field.name) == field.default
            else "given",
        }
        for field in dataclasses.fields(assumed)
    }
    chosen = request.training_set
    return told | {
        "images": {
            "value": chosen.num_images,
            "meaning": "training images of one epoch",
            "source": chosen.source,
        },
        "classes": {
            "value": chosen.num_classes,
            "meaning": "outputs of the head",
            "source": chosen.source,
        },
        "bytes_per_image": {
            "value": chosen.bytes_per_image,
            "meaning": "mean size of an image in the shards",
            "source": chosen.source,
        },
    }
