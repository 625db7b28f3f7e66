"""How busy the machine of this process is, as metrics."""

import sys

import psutil

from tracking import metric_names

GIB = 1024**3


def system_metrics() -> dict[str, float]:
    """Load since the last call and memory now, of this host, this process and its current GPU.

    Cheap enough for every logging step: nothing waits for the GPU. The first `system/cpu_percent`
    of a process is 0, because it covers the time since the call before.
    """
    metrics = {
        metric_names.CPU_PERCENT: psutil.cpu_percent(interval=None),
        metric_names.MEMORY_GIB: psutil.Process().memory_info().rss / GIB,
        metric_names.HOST_MEMORY_PERCENT: psutil.virtual_memory().percent,
    }
    # A process that has not imported torch has nothing on a GPU, and importing it takes seconds.
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        metrics[metric_names.GPU_MEMORY_GIB] = torch.cuda.memory_allocated() / GIB
        metrics[metric_names.GPU_MEMORY_PEAK_GIB] = torch.cuda.max_memory_allocated() / GIB
        metrics[metric_names.GPU_MEMORY_RESERVED_GIB] = torch.cuda.memory_reserved() / GIB
        metrics[metric_names.GPU_MEMORY_RESERVED_PEAK_GIB] = torch.cuda.max_memory_reserved() / GIB
        try:
            metrics[metric_names.GPU_UTILIZATION_PERCENT] = float(torch.cuda.utilization())
        except Exception:
            # NVML's Python bindings are optional, and its own errors have no common base class.
            pass
    return metrics
