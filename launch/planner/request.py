"""What is planned, checked before torch is imported."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from configs.batch_split import split_batch
from configs.errors import RefusedInput
from configs.schema import PretrainConfig
from launch.planner.options import PlanOptions
from launch.planner.training_set import TrainingSet, describe_training_set
from pretrain.plan import count_steps
from training.gpus import Gpu, find_gpu
from training.precision import Precision


@dataclass(frozen=True)
class Request:
    """Everything that needs no model.

    Attributes:
        options: The command line.
        config: The run's options.
        gpu: Its table row, with what the command line says otherwise.
        precision: Of both passes.
        peak_tflops: Of one GPU in that precision.
        training_set: Images and classes.
        micro_images: As the config has it.
        accumulation_steps: As follows from it.
        total_steps: Of the whole run.
    """

    options: PlanOptions
    config: PretrainConfig
    gpu: Gpu
    precision: Precision
    peak_tflops: float
    training_set: TrainingSet
    micro_images: int
    accumulation_steps: int
    total_steps: int


def check_request(options: PlanOptions, config: PretrainConfig) -> Request:
    """Find GPU, training set, batch and length, or refuse what cannot be planned.

    Raises:
        RefusedInput: Of GPU, batch, precision or training set; the message says what to change.
    """
    gpu = find_gpu(options.gpu)
    gpu = dataclasses.replace(
        gpu,
        memory_gib=options.gpu_memory_gib or gpu.memory_gib,
        watts=options.gpu_watts or gpu.watts,
    )
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if gpu.multiplies_bf16 else "fp32"
    if precision == "bf16" and not gpu.multiplies_bf16 and options.peak_tflops is None:
        raise RefusedInput(
            f"precision = {config.precision}: {gpu.name} does not multiply bf16; "
            "give --precision fp16 or fp32, or --peak-tflops T"
        )
    training_set = describe_training_set(
        config,
        images=options.images,
        classes=options.classes,
        bytes_per_image=options.bytes_per_image,
    )
    micro_images, accumulation_steps = split_batch(config.batch, options.gpus)
    return Request(
        options=options,
        config=config,
        gpu=gpu,
        precision=precision,
        peak_tflops=options.peak_tflops or gpu.tflops(precision),
        training_set=training_set,
        micro_images=micro_images,
        accumulation_steps=accumulation_steps,
        total_steps=count_steps(config, training_set.num_images),
    )
