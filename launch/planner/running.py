"""Time, data, network, checkpoints and energy of a run: arithmetic on what is known of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.groups import CheckpointConfig
from launch.planner.options import Assumptions
from pretrain.state_memory import BYTES

DAY_SECONDS = 86_400


@dataclass(frozen=True)
class Run:
    """A run as the clock sees it.

    Attributes:
        assumed: What cannot be known.
        num_gpus: Of all nodes.
        num_nodes: Machines.
        peak_flops: Of one GPU, FLOP/s.
        gpu_watts: Power limit of one.
        training_flops_per_image: Forward and backward pass.
        global_images: Of one step.
        total_steps: Of the schedule.
        accumulation_steps: Micro batches of a step.
        recomputed: Share of the forward pass that runs twice.
    """

    assumed: Assumptions
    num_gpus: int
    num_nodes: int
    peak_flops: float
    gpu_watts: float
    training_flops_per_image: float
    global_images: int
    total_steps: int
    accumulation_steps: int
    recomputed: float = 0.0

    @property
    def images_per_second(self) -> float:
        """Of all GPUs; a forward pass that runs again is a third of a step's work once more."""
        used = self.num_gpus * self.peak_flops * self.assumed.mfu
        return used / (self.training_flops_per_image * (1 + self.recomputed / 3))

    @property
    def step_seconds(self) -> float:
        """Of one optimizer step."""
        return self.global_images / self.images_per_second


def throughput(run: Run) -> dict[str, Any]:
    """Images a second at the stated MFU; running all blocks twice takes a quarter of it away."""
    return {
        "mfu": run.assumed.mfu,
        "images_per_second": run.images_per_second,
        "images_per_second_per_gpu": run.images_per_second / run.num_gpus,
        "images_per_second_with_checkpointing": run.images_per_second * (3 + run.recomputed) / 4,
        "step_seconds": run.step_seconds,
    }


def schedule(run: Run, num_images: int, saving_seconds: float) -> dict[str, Any]:
    """How long the schedule takes; evaluations and restarts come on top."""
    images = run.total_steps * run.global_images
    days = (run.total_steps * run.step_seconds + saving_seconds) / DAY_SECONDS
    return {
        "total_steps": run.total_steps,
        "images": images,
        "epochs": images / num_images,
        "training_flops": images * run.training_flops_per_image,
        "days": days,
        "gpu_hours": days * 24 * run.num_gpus,
    }


def data(run: Run, bytes_per_image: float) -> dict[str, Any]:
    """What each node has to read and decode for the GPUs never to wait."""
    per_node = run.images_per_second / run.num_nodes
    return {
        "images_per_second_per_node": per_node,
        "megabytes_per_second_per_node": per_node * bytes_per_image / 1e6,
        "decode_cores_per_node": per_node / run.assumed.decode_images_per_core,
    }


def network(
    run: Run, num_parameters: int, stage: int, deepspeed: Mapping[str, Any]
) -> dict[str, Any]:
    """Bytes each GPU sends a step, and the rate that hides them behind the step's computation.

    A ring's reduce-scatter or all-gather of n bytes sends n (N - 1) / N from each of N ranks; an
    all-reduce is one of each. Stage 0 and bf16 at stage 1 sum once a step, the others after every
    micro batch; stage 3 gathers the weights once for each micro batch, and once more where it does
    not keep them between the passes.
    """
    is_bf16 = deepspeed["bf16"]["enabled"]
    width = 2 if is_bf16 or deepspeed["fp16"]["enabled"] else 4
    sum_width = BYTES[deepspeed["communication_data_type"]]
    share = (run.num_gpus - 1) / run.num_gpus
    offloads = "offload_optimizer" in deepspeed["zero_optimization"]
    sums_once = stage == 0 or (stage == 1 and is_bf16 and not offloads)
    sums = 1 if sums_once else run.accumulation_steps
    gathers = {0: 0, 1: 1, 2: 1, 3: 2 * run.accumulation_steps}[stage]
    sent_per_parameter = sum_width * sums * (1 if stage == 3 else 2) + width * gathers
    sent = num_parameters * share * sent_per_parameter
    return {
        "bytes_sent_per_gpu_per_step": round(sent),
        "gigabytes_per_second_per_gpu": sent / run.step_seconds / 1e9,
    }


def checkpoints(run: Run, size: int, options: CheckpointConfig) -> dict[str, Any]:
    """The time to write a checkpoint of `size` bytes, and for how long training stands still.

    Training always waits for the copy to host memory. Writing it is done in the background, unless
    that is switched off; the next save waits for the one before it.
    """
    assumed = run.assumed
    copying = size / run.num_gpus / (assumed.copy_gb_per_second * 1e9)
    writing = size / (assumed.storage_gb_per_second * 1e9)
    until_next = options.every_steps * run.step_seconds
    waiting = max(0.0, writing - until_next) if options.in_background else writing
    number = math.ceil(run.total_steps / options.every_steps)
    stalled = number * (copying + waiting)
    return {
        "bytes": size,
        "disk_bytes": checkpoint_disk_bytes(size, options, run.total_steps),
        "host_bytes_per_node": round(size / run.num_nodes),
        "write_seconds": writing,
        "stall_seconds": copying + waiting,
        "number": number,
        "stall_seconds_in_all": stalled,
        "share_of_time": stalled / (run.total_steps * run.step_seconds + stalled),
    }


def checkpoint_disk_bytes(size: int, options: CheckpointConfig, total_steps: int = 0) -> int:
    """The most that a run's checkpoints take, of `size` bytes each, with those that stay for good.

    Milestones are counted up to `total_steps`.
    """
    milestones = total_steps // (options.milestone_every_steps or total_steps + 1)
    # One more than is kept exists while it is being written.
    return size * (options.keep + 1 + milestones)


def energy(run: Run, days: float) -> dict[str, Any]:
    """Energy of GPUs, hosts and building, and what the grid emits for it."""
    assumed = run.assumed
    watts_per_gpu = run.gpu_watts * assumed.power_fraction + assumed.host_watts_per_gpu
    kilowatts = run.num_gpus * watts_per_gpu * assumed.pue / 1000
    kilowatt_hours = kilowatts * days * 24
    return {
        "kilowatts": kilowatts,
        "kilowatt_hours": kilowatt_hours,
        "co2_kg": kilowatt_hours * assumed.grid_kg_per_kwh,
    }
