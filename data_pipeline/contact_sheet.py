"""A picture of some images of a dataset with their labels, and of what the model will see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from configs.data_groups import LoaderConfig
from configs.errors import RefusedInput
from data_pipeline.augment import TrainTransform
from data_pipeline.broken import BrokenImage, BrokenShard
from data_pipeline.dataset import ShardedDataset
from data_pipeline.decode import decode_image
from data_pipeline.order import SampleOrder, stable_permutation
from data_pipeline.shard_reader import ShardReader

TILE_PX = 112
_GAP_PX = 6
_TEXT_PX = 12
_TEXT_CHARACTERS = 18
_VIEWS = 5
_COLUMNS = 8


@dataclass(frozen=True)
class Sheet:
    """What a contact sheet shows: `num_images` chosen by `seed`, evenly over the classes.

    With a `transform`, each image is followed by the views that training takes of it at five
    positions; a tile is then at least as large as the model's input. With an `order`, the images
    are those at `positions` of a run, each with the one view that the run takes of it.
    """

    num_images: int = 32
    seed: int = 0
    transform: TrainTransform | None = None
    order: SampleOrder | None = None
    positions: range = range(0)


def draw_contact_sheet(dataset: ShardedDataset, sheet: Sheet, path: Path) -> None:
    """Write the picture to `path`, in the format of its extension.

    Raises:
        RefusedInput: It cannot be written.
    """
    rows, positions = _chosen(dataset, sheet)
    reader = ShardReader(dataset)
    tiles: list[tuple[Image.Image, str]] = []
    try:
        for row, at in zip(rows.tolist(), positions, strict=True):
            name = dataset.class_text(row)
            name = name if sheet.order is None else f"{at[0]} {name}"
            try:
                image = decode_image(reader.read(row), max_pixels=LoaderConfig().max_image_pixels)
            except (BrokenImage, BrokenShard) as error:
                tiles += [(Image.new("RGB", (1, 1), "red"), f"broken: {error}")]
                tiles += [(Image.new("RGB", (1, 1), "white"), "")] * _num_views(sheet)
                continue
            tiles.append((_picture(image), name))
            tiles += [(_picture(view), "") for view in _views(image, at, sheet)]
    finally:
        reader.close()
    columns = _COLUMNS if _num_views(sheet) < _VIEWS else 1 + _VIEWS
    try:
        _arranged(tiles, min(columns, len(tiles)), _tile_px(sheet)).save(path)
    except (OSError, ValueError) as error:
        raise RefusedInput(f"--contact-sheet {path} cannot be written: {error}") from error


def _chosen(
    dataset: ShardedDataset, sheet: Sheet
) -> tuple[NDArray[np.int64], list[tuple[int, ...]]]:
    """Rows to show, and for each the positions at which its views are taken."""
    if sheet.order is not None:
        positions = np.arange(sheet.positions.start, sheet.positions.stop)
        return sheet.order.rows_at(positions), [(position,) for position in sheet.positions]
    rows = choose_rows(dataset, sheet.num_images, sheet.seed)
    return rows, [tuple(range(n * _VIEWS, (n + 1) * _VIEWS)) for n in range(len(rows))]


def choose_rows(dataset: ShardedDataset, num_images: int, seed: int) -> NDArray[np.int64]:
    """Rows chosen at random, as evenly over the classes as they allow, in order of their labels."""
    shuffled = stable_permutation(dataset.num_images, "contact sheet", seed)
    labels = dataset.label[shuffled]
    by_label = np.argsort(labels, kind="stable")
    first_of_label = np.searchsorted(labels[by_label], labels[by_label])
    turn = np.empty_like(by_label)
    turn[by_label] = np.arange(len(labels)) - first_of_label
    chosen = shuffled[np.argsort(turn, kind="stable")[:num_images]]
    return chosen[np.argsort(dataset.label[chosen], kind="stable")]


def _num_views(sheet: Sheet) -> int:
    if sheet.transform is None:
        return 0
    return _VIEWS if sheet.order is None else 1


def _views(image: torch.Tensor, positions: tuple[int, ...], sheet: Sheet) -> list[torch.Tensor]:
    """What training sees of an image, each uint8 (3, height, width); none without a transform."""
    if sheet.transform is None:
        return []
    views = torch.empty((len(positions), 3, *sheet.transform.image_size), dtype=torch.uint8)
    for view, position in zip(views, positions, strict=True):
        sheet.transform(image, position, view)
    return list(views)


def _tile_px(sheet: Sheet) -> int:
    return TILE_PX if sheet.transform is None else max(TILE_PX, *sheet.transform.image_size)


def _picture(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def _arranged(tiles: list[tuple[Image.Image, str]], columns: int, tile_px: int) -> Image.Image:
    """Tiles with their texts below, row by row."""
    step_x, step_y = tile_px + _GAP_PX, tile_px + _TEXT_PX + _GAP_PX
    num_rows = -(-len(tiles) // columns)
    canvas = Image.new("RGB", (columns * step_x + _GAP_PX, num_rows * step_y + _GAP_PX), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_TEXT_PX - 2)
    for number, (picture, text) in enumerate(tiles):
        row, column = divmod(number, columns)
        left, top = _GAP_PX + column * step_x, _GAP_PX + row * step_y
        scale = min(tile_px / picture.width, tile_px / picture.height)
        size = (max(1, int(picture.width * scale)), max(1, int(picture.height * scale)))
        # Small images keep their pixels visible.
        method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
        canvas.paste(picture.resize(size, method), (left, top))
        draw.text((left, top + tile_px), _shortened(text), fill="black", font=font)
    return canvas


def _shortened(text: str) -> str:
    """A text that fits below a tile, in letters that the built-in font has."""
    plain = text.encode("latin-1", errors="replace").decode("latin-1").replace("\n", " ")
    return plain if len(plain) <= _TEXT_CHARACTERS else plain[: _TEXT_CHARACTERS - 2] + ".."
