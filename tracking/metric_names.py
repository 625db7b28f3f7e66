"""The names of all metrics, so that runs of both stages can be compared in one chart."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

TRAIN_LOSS = "train/loss"
TRAIN_LR = "train/lr"
TRAIN_GRAD_NORM = "train/grad_norm"
TRAIN_EPOCH = "train/epoch"
TRAIN_IMAGES_SEEN = "train/images_seen"
TRAIN_BROKEN_IMAGES = "train/broken_images"
TRAIN_SKIPPED_UPDATES = "train/skipped_updates"
TRAIN_REWINDS = "train/rewinds"
TRAIN_LOSS_SCALE = "train/loss_scale"

REMOTE_BYTES = "data/remote_bytes"
REMOTE_SHARDS = "data/remote_shards"
REMOTE_RETRIES = "data/remote_retries"
REMOTE_WAIT_SECONDS = "data/remote_wait_seconds"
CACHE_HIT_FRACTION = "data/cache_hit_fraction"
STRAIGHT_READS = "data/straight_reads"

IMAGES_PER_SECOND = "throughput/images_per_second"
DATA_WAIT_FRACTION = "throughput/data_wait_fraction"
MFU = "throughput/mfu"
STEP_SECONDS = "throughput/step_seconds"
SAVE_STALL_SECONDS = "throughput/save_stall_seconds"
SAVE_WRITE_SECONDS = "throughput/save_write_seconds"

VALIDATION_TOP1 = "validation/top1"
VALIDATION_TOP5 = "validation/top5"
VALIDATION_MEAN_PER_CLASS = "validation/mean_per_class"
VALIDATION_MEAN_AVERAGE_PRECISION = "validation/mean_average_precision"
VALIDATION_REAL_TOP1 = "validation/real_top1"
VALIDATION_LOSS = "validation/loss"
VALIDATION_BROKEN_IMAGES = "validation/broken_images"

TEST_TOP1 = "test/top1"
TEST_TOP5 = "test/top5"
TEST_MEAN_PER_CLASS = "test/mean_per_class"
TEST_REAL_TOP1 = "test/real_top1"
TEST_LOSS = "test/loss"
TEST_BROKEN_IMAGES = "test/broken_images"
TEST_MEAN_AVERAGE_PRECISION = "test/mean_average_precision"

CPU_PERCENT = "system/cpu_percent"
MEMORY_GIB = "system/memory_gib"
HOST_MEMORY_PERCENT = "system/host_memory_percent"
GPU_MEMORY_GIB = "system/gpu_memory_gib"
GPU_MEMORY_PEAK_GIB = "system/gpu_memory_peak_gib"
GPU_MEMORY_RESERVED_GIB = "system/gpu_memory_reserved_gib"
GPU_MEMORY_RESERVED_PEAK_GIB = "system/gpu_memory_reserved_peak_gib"
GPU_UTILIZATION_PERCENT = "system/gpu_utilization_percent"

ALL_GROUPS = "all"
"""Group of layers that holds them all."""


def grad_norm(group: str) -> str:
    """Norm of a group of layers' gradient; the squares of all groups sum to `TRAIN_GRAD_NORM`'s."""
    return f"grad_norm/{group}"


def weight_norm(group: str) -> str:
    """Norm of a group of layers' fp32 weights."""
    return f"weight_norm/{group}"


def relative_update(group: str) -> str:
    """Norm of what one update changed in a group of layers, over the norm of its weights."""
    return f"relative_update/{group}"


def time_share(phase: str) -> str:
    """Share (0 to 1) of the time since the last log line that a phase of the loop took."""
    return f"time/{phase}"


def worst_rank(name: str) -> str:
    """Name of a metric that is the largest over the ranks."""
    return f"{name}_worst_rank"


def transfer(task: str, score: str) -> str:
    """Name of the result of a transfer as it is shown on the page of the pretrained model."""
    return f"transfer/{task}/{score}"


def few_shot(task: str, shots: int) -> str:
    """Name of the mean accuracy of few-shot probes over the seeds."""
    return f"few_shot/{task}/{shots}_shot_top1"


def few_shot_scores(task: str, top1: Mapping[int, Sequence[float]]) -> dict[str, float]:
    """Mean and standard deviation (of more than one) over the seeds, by images of each class."""
    means = {few_shot(task, shots): mean(values) for shots, values in top1.items()}
    spreads = {
        f"{few_shot(task, shots)}_std": stdev(values)
        for shots, values in top1.items()
        if len(values) > 1
    }
    return means | spreads


def of_average(name: str) -> str:
    """Name of a score when it is that of the moving average of the weights."""
    group, _, rest = name.partition("/")
    return f"{group}_ema/{rest}"
