"""A page for people to judge: the pairs side by side, in one HTML file that needs no other."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from configs.data_groups import LoaderConfig
from data_pipeline.broken import BrokenImage, BrokenShard
from data_pipeline.dataset import ShardedDataset
from data_pipeline.leaks.search import KINDS
from data_pipeline.location import redacted
from data_pipeline.shard_reader import ShardReader

_TILE_PX = 160
# What a name in the data must not become: a script, a link, another host's image.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(350px, 1fr)); gap: 12px }
figure { margin: 0; padding: 8px; border: 1px solid #ccc; border-radius: 4px }
img { width: 160px; height: 160px; object-fit: contain; background: #eee; vertical-align: top }
img.small { image-rendering: pixelated }
figcaption { overflow-wrap: anywhere; font-size: 12px }
"""


def write_report(
    path: Path,
    leaks: Path,
    train: ShardedDataset,
    tests: Sequence[ShardedDataset],
    summary: Sequence[str],
    num_pairs: int,
) -> int:
    """Write the page and give the number of pairs on it.

    Args:
        path: file to write.
        leaks: the pairs, as `LeakTable` wrote them.
        train: the training set that they were found in.
        tests: the test sets.
        summary: lines of text for the top of the page.
        num_pairs: how many pairs to show at most: equally many of each kind, evenly from the most
            doubtful to the clearest.
    """
    with pq.ParquetFile(leaks) as file:
        columns = file.read(columns=["kind", "distance"])
        rows = choose_pairs(columns["kind"].to_pylist(), columns["distance"].to_pylist(), num_pairs)
        total = columns.num_rows
        pairs = file.read().take(rows).to_pylist()
    pictures = {dataset.place: _Pictures(dataset) for dataset in (train, *tests)}
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with open(temporary, "w", encoding="utf-8") as page:
            page.write(_head(summary, len(pairs), total))
            for pair in pairs:
                page.write(_figure(pair, pictures[train.place], pictures[pair["test_folder"]]))
            page.write("</div></body></html>\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
        for images in pictures.values():
            images.close()
    return len(pairs)


def choose_pairs(kinds: Sequence[str], distances: Sequence[float], limit: int) -> NDArray[np.int64]:
    """Rows to show: an equal share of each kind, evenly over the distances, largest first."""
    by_kind = [np.flatnonzero(np.array(kinds) == kind) for kind in reversed(KINDS)]
    chosen, room = [], limit
    # The smallest kinds choose first, so that what they leave goes to the others.
    order = sorted(range(len(by_kind)), key=lambda number: len(by_kind[number]))
    shares: dict[int, int] = {}
    for left, number in zip(range(len(order), 0, -1), order, strict=True):
        shares[number] = min(len(by_kind[number]), room // left)
        room -= shares[number]
    for number, rows in enumerate(by_kind):
        descending = rows[np.argsort(-np.array(distances)[rows], kind="stable")]
        places = np.linspace(0, max(0, len(rows) - 1), shares[number]).round().astype(np.int64)
        chosen.append(descending[places])
    return np.concatenate(chosen).astype(np.int64)


class _Pictures:
    """Images of a dataset as data URLs."""

    def __init__(self, dataset: ShardedDataset) -> None:
        self._reader = ShardReader(dataset)

    def tag(self, row: int) -> str:
        """An `img` element, or a note where the image cannot be decoded."""
        from data_pipeline.decode import decode_image

        try:
            pixels = decode_image(
                self._reader.read(row), max_pixels=LoaderConfig().max_image_pixels
            )
        except (BrokenImage, BrokenShard) as error:
            return f"<em>unreadable: {html.escape(redacted(str(error)))}</em>"
        image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        small = max(image.size) <= _TILE_PX
        image.thumbnail((_TILE_PX, _TILE_PX))
        file = io.BytesIO()
        image.save(file, "PNG" if small else "JPEG", quality=85)
        kind = "png" if small else "jpeg"
        data = base64.b64encode(file.getvalue()).decode()
        css = ' class="small"' if small else ""
        return f'<img{css} alt="" src="data:image/{kind};base64,{data}">'

    def close(self) -> None:
        """Close the shards."""
        self._reader.close()


def _head(summary: Sequence[str], num_shown: int, total: int) -> str:
    lines = "<br>\n".join(html.escape(line) for line in summary)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>Leaks</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>Training images that show test images</h1>\n<p>{lines}</p>\n"
        f"<p>{num_shown:,} of {total:,} pairs; left the training image, right the test image. "
        "Within a kind, the most doubtful pairs come first; the distance is 1 - correlation.</p>\n"
        '<div class="pairs">\n'
    )


def _figure(pair: dict[str, Any], train: _Pictures, test: _Pictures) -> str:
    train_tag, test_tag = train.tag(pair["train_row"]), test.tag(pair["test_row"])
    caption = [
        f"{pair['kind']}, distance {pair['distance']:.4f}",
        f"train: {pair['train_shard']} {pair['train_key']}",
        f"test: {pair['test_folder']} {pair['test_shard']} {pair['test_key']}",
    ]
    text = "<br>".join(html.escape(line) for line in caption)
    return f"<figure>{train_tag} {test_tag}<figcaption>{text}</figcaption></figure>\n"
