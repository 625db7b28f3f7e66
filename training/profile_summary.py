"""What a profile says in words: the costliest operations, and what communication costs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

_ROWS = 40
# Kernels of NCCL and RCCL on a GPU; what gloo does on a CPU.
_COMMUNICATION = ("nccl", "rccl", "gloo:")

Span = tuple[float, float]


def summary_of(profile: torch.profiler.profile, steps: int) -> str:
    """A page on a finished profile of so many steps."""
    events = list(profile.events() or ())
    on_gpu = [event for event in events if _is_on_gpu(event)]
    ops = on_gpu or events
    spans = [_span(event) for event in ops]
    begin, end = min((s[0] for s in spans), default=0.0), max((s[1] for s in spans), default=0.0)
    communicating = list(_joined(_span(event) for event in ops if _is_communication(event)))
    computing = list(_joined(_span(event) for event in on_gpu if not _is_communication(event)))
    whole = end - begin
    sort = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    table = profile.key_averages().table(sort_by=sort, row_limit=_ROWS)
    lines = [f"{steps} steps, {whole / 1e3 / steps:.2f} ms a step on this rank"]
    if whole > 0.0:
        lines.append(f"communicating: {_length(communicating) / whole:.1%} of the time")
    if on_gpu and whole > 0.0:
        hidden = _length(communicating) - _overlap(communicating, computing)
        lines.append(f"communicating while nothing was computed: {hidden / whole:.1%}")
        busy = _length(list(_joined([*communicating, *computing])))
        lines.append(f"GPU without work: {1 - busy / whole:.1%}")
    return "\n".join([*lines, "", table, ""])


def _is_on_gpu(event: Any) -> bool:
    return bool(event.device_type == torch.autograd.DeviceType.CUDA)


def _is_communication(event: Any) -> bool:
    return any(word in event.name.lower() for word in _COMMUNICATION)


def _span(event: Any) -> Span:
    return float(event.time_range.start), float(event.time_range.end)


def _joined(spans: Iterable[Span]) -> Iterator[Span]:
    """The union of spans as spans that lie apart, in order."""
    begin = end = None
    for first, last in sorted(spans):
        if end is None or begin is None:
            begin, end = first, last
        elif first > end:
            yield begin, end
            begin, end = first, last
        else:
            end = max(end, last)
    if begin is not None and end is not None:
        yield begin, end


def _length(spans: list[Span]) -> float:
    return sum(end - begin for begin, end in spans)


def _overlap(some: list[Span], others: list[Span]) -> float:
    """Length of what two unions have in common: that of both, less that of their union."""
    return _length(some) + _length(others) - _length(list(_joined([*some, *others])))
