"""A picture of a loader benchmark: a bar for each contestant, with its lowest and highest run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

OURS, LIMIT, PEER = "#1f77b4", "#b0b0b0", "#ff7f0e"


def plot(report: dict[str, Any], names: Sequence[str], path: Path) -> None:
    """Draw images per second of the contestants, fastest on top, into `path`."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "loader"  # the same report gives the same file
    from matplotlib import pyplot

    ordered = sorted(names, key=lambda name: float(report[name]["images_per_second"]))
    speeds = [report[name]["images_per_second"] for name in ordered]
    ranges = [report[name]["images_per_second_range"] for name in ordered]
    errors = [
        [speed - low for speed, (low, _) in zip(speeds, ranges, strict=True)],
        [high - speed for speed, (_, high) in zip(speeds, ranges, strict=True)],
    ]
    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(ordered) + 1.2), layout="constrained")
    axes.barh(ordered, speeds, xerr=errors, color=[colour(name) for name in ordered], capsize=3)
    for place, (speed, (_, high)) in enumerate(zip(speeds, ranges, strict=True)):
        axes.annotate(
            f"{speed:.0f}",
            (max(speed, high), place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
        )
    axes.margins(x=0.1)
    settings, about = report["settings"], report["circumstances"]
    axes.set_xlabel(
        f"images/s, median and range of {settings['runs']} runs, {settings['workers']} threads or "
        f"processes ({about['date']})"
    )
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def colour(name: str) -> str:
    """Ours, what bounds us, or a peer."""
    if name.startswith("bare"):
        return LIMIT
    return OURS if name.startswith("vitrain") else PEER
