"""Pictures of a run as PNG files: the confusion matrix and the curves of its metrics."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracking.journal import read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Above these, numbers in the cells and a name for every row would be too small to read.
MAX_CLASSES_WITH_NUMBERS = 16
MAX_CLASSES_WITH_NAMES = 60
NUM_CONFUSIONS_LISTED = 20
MAX_NAME_CHARACTERS = 24
DOTS_PER_INCH = 110

# Title of a panel, and the last parts of the metric names it shows.
PANELS = {
    "loss": ("loss",),
    "accuracy": ("top1", "top5", "mean_per_class", "real_top1", "mean_average_precision"),
    "learning rate": ("lr",),
    "gradient norm": ("grad_norm",),
    "images per second": ("images_per_second",),
    "share of time waiting for data": ("data_wait_fraction",),
}
PANEL_COLUMNS = 2


def confusion_matrix_png(confusion: np.ndarray, classes: Sequence[str], path: Path) -> Path:
    """Draw which classes were taken for which, and list the most frequent confusions.

    Args:
        confusion: (classes, classes) counts; a row is a true class, a column a prediction.
        classes: Names in the order of the rows.
        path: The PNG file to write.

    Raises:
        ValueError: The matrix does not fit the number of classes.
    """
    confusion = np.asarray(confusion)
    if confusion.shape != (len(classes), len(classes)):
        raise ValueError(f"confusion has shape {confusion.shape} for {len(classes)} classes")
    names = [_short(name) for name in classes]
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    side = float(np.clip(0.36 * len(names) + 3, 6, 13))
    figure = _new_figure(side + 5, side)
    matrix_axes, list_axes = figure.subplots(1, 2, width_ratios=(side, 5))
    _draw_matrix(matrix_axes, shares, names)
    if len(names) <= MAX_CLASSES_WITH_NUMBERS:
        _draw_numbers(matrix_axes, confusion, shares)
    accuracy = np.trace(confusion) / max(1, confusion.sum())
    matrix_axes.set_title(
        f"{confusion.sum()} images, {len(names)} classes, {100 * accuracy:.1f} % right"
    )
    _list_confusions(list_axes, confusion, names)
    return _save(figure, path)


def _draw_matrix(axes: "Axes", shares: np.ndarray, names: list[str]) -> None:
    # The square root shows rare confusions, which a linear scale would leave white.
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(names) <= MAX_CLASSES_WITH_NAMES:
        size = 10 if len(names) <= 20 else 7
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    else:
        axes.set_xlabel("predicted (number of the class)")
        axes.set_ylabel("true (number of the class)")


def _draw_numbers(axes: "Axes", confusion: np.ndarray, shares: np.ndarray) -> None:
    for row, column in np.argwhere(confusion > 0):
        colour = "white" if np.sqrt(shares[row, column]) > 0.6 else "black"
        text = str(int(confusion[row, column]))
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)


def _list_confusions(axes: "Axes", confusion: np.ndarray, names: list[str]) -> None:
    axes.axis("off")
    wrong = confusion.astype(np.int64)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:NUM_CONFUSIONS_LISTED]
    lines = ["most frequent confusions", "(true > predicted: images)", ""]
    for row, column in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[row, column] > 0:
            lines.append(f"{names[row]} [{row}] > {names[column]} [{column}]: {wrong[row, column]}")
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=9, transform=axes.transAxes)


def curves_png(journal_path: Path, path: Path) -> Path:
    """Draw a run's metrics journal: loss, accuracy, learning rate, speed over optimizer steps."""
    series = _read_series(journal_path)
    panels = {
        title: {name: points for name, points in series.items() if name.split("/")[-1] in ends}
        for title, ends in PANELS.items()
    }
    panels = {title: shown for title, shown in panels.items() if shown}
    rows = max(1, -(-len(panels) // PANEL_COLUMNS))
    figure = _new_figure(13, 3.6 * rows)
    grid = figure.subplots(rows, PANEL_COLUMNS, squeeze=False).ravel()
    for axes, (title, shown) in zip(grid, panels.items(), strict=False):
        for name, points in sorted(shown.items()):
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, label=name, marker="." if len(points) < 40 else "")
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    return _save(figure, path)


def _read_series(journal_path: Path) -> dict[str, list[tuple[int, float]]]:
    series = defaultdict(list)
    for row, _ in read_rows(journal_path):
        for name, value in row["values"].items():
            if np.isfinite(float(value)):
                series[name].append((row["step"], float(value)))
    return series


def _short(name: str) -> str:
    short = name if len(name) <= MAX_NAME_CHARACTERS else name[: MAX_NAME_CHARACTERS - 1] + "…"
    # Matplotlib would read what is between two dollar signs as a formula.
    return short.replace("$", r"\$")


def _new_figure(width_inches: float, height_inches: float) -> "Figure":
    # A bare figure with its own canvas: no pyplot, so no display and no global state is touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Tight: the square matrix leaves the layout no room for its title otherwise.
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png", bbox_inches="tight")
    return path
