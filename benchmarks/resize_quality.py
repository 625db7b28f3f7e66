"""How near each way of resizing comes to Pillow's antialiased bicubic, the usual reference.

    python benchmarks/resize_quality.py --shards DIR [--images 400] [--px 224 64] [--json FILE]

Random training crops (area 8-100 %, ratio 3/4-4/3) are resized by every `augment.interpolation`,
`augment.antialias` and `augment.dct_scaling`, and compared with the same crop cut out of the whole
image and resized by Pillow with BICUBIC (which antialiases). PSNR in dB and SSIM (11 x 11 Gaussian
window), medians over the crops, grouped by how many pixels of the crop fall to one of the view
along a side. Edges of the crops are moved to multiples of 8 pixels: DCT scaling rounds them to
decoded pixels, and this is about how pixels look, not about where a random crop lies. Needs the
native decoder. Seeded: the numbers do not depend on the machine's speed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.loader_ours import GENERATED, generate_shards, our_transform  # noqa: E402
from benchmarks.side_by_side import circumstances, write_json  # noqa: E402

MAX_PIXELS = 178_956_970
WAYS = [
    (interpolation, antialias, scaling)
    for interpolation in ("bicubic", "bilinear")
    for antialias in (True, False)
    for scaling in (False, True)
]
GROUPS = ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, float("inf")))


def compared(options: argparse.Namespace, px: int) -> Iterator[tuple[float, Any, float, float]]:
    """For each crop and way: shrinkage of the crop, the way, PSNR and SSIM."""
    from data_pipeline import open_dataset
    from data_pipeline.jpeg_crop import covering_eighths, jpeg_cropper
    from data_pipeline.position_draws import PositionDraws, draws_key
    from data_pipeline.resizing import Resizing
    from data_pipeline.shard_reader import ShardReader

    options.px = px
    transform, cropper = our_transform(options), jpeg_cropper()
    assert cropper is not None, "the native decoder is not built (make setup)"
    dataset = open_dataset(options.shards)
    reader = ShardReader(dataset)
    for row in range(0, len(dataset), max(1, len(dataset) // options.images)):
        data = reader.read(row)
        size = cropper.size(data)
        if size is None:
            continue  # turned by EXIF and the like: decoded whole, whatever the way
        box = aligned(transform.area_box(size, PositionDraws(draws_key(0), row)))
        reference = pillow_view(data, box, px)
        for interpolation, antialias, scaling in WAYS:
            eighths = covering_eighths(box, (px, px)) if scaling else 8
            pixels = cropper.crop(data, box, eighths)
            view = Resizing(interpolation, antialias)(pixels, (px, px))
            way = (interpolation, antialias, scaling)
            yield (box.height * box.width) ** 0.5 / px, way, *scores(view, reference)


def aligned(box: Any) -> Any:
    """The box with its edges at multiples of 8 pixels, none of its sides empty."""
    top, left = box.top // 8 * 8, box.left // 8 * 8
    return type(box)(top, left, max(8, box.height // 8 * 8), max(8, box.width // 8 * 8))


def pillow_view(data: bytearray, box: Any, px: int) -> Any:
    """The crop, decoded whole and resized by Pillow, uint8 (3, px, px)."""
    import numpy as np
    import torch
    from PIL import Image

    from data_pipeline.decode import decode_image

    crop = box.cut(decode_image(data, max_pixels=MAX_PIXELS)).permute(1, 2, 0).contiguous()
    view = Image.fromarray(crop.numpy()).resize((px, px), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(view)).permute(2, 0, 1)


def scores(view: Any, reference: Any) -> tuple[float, float]:
    """PSNR (dB, at most 100) and SSIM of two uint8 images."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    error = float((view.float() - reference.float()).square().mean())
    psnr = 10 * math.log10(255**2 / error) if error > 0 else 100.0
    similarity = structural_similarity_index_measure(
        view[None].float(), reference[None].float(), data_range=255.0
    )
    return min(psnr, 100.0), float(similarity)


def parse(argv: list[str]) -> argparse.Namespace:
    """Options of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shards", type=Path, help="folder of shards made by data_pipeline.build")
    parser.add_argument("--images", type=int, default=400, help="crops for each size")
    parser.add_argument("--px", type=int, nargs="+", default=[224, 64], help="sides of a view")
    parser.add_argument("--json", type=Path, help="file for the whole report")
    return parser.parse_args(argv)


def main() -> None:
    """Compare and print."""
    options = parse(sys.argv[1:])
    options.shards = (options.shards or generate_shards(GENERATED)).resolve()
    found = [row for px in options.px for row in compared(options, px)]
    report: dict[str, Any] = {}
    groups = [group for group in GROUPS if any(within(row[0], group) for row in found)]
    titles = [f"{low:g}-{high:g} x smaller: dB, SSIM" for low, high in groups]
    print(f"| interpolation | antialias | dct_scaling | {' | '.join(titles)} |")
    print("|---|---|---|" + "---|" * len(groups))
    for way in WAYS:
        cells = []
        for group in groups:
            rows = [row for row in found if row[1] == way and within(row[0], group)]
            psnr, ssim = (statistics.median(row[place] for row in rows) for place in (2, 3))
            cells.append(f"{psnr:.1f}, {ssim:.3f}")
            key = "-".join(str(part) for part in way)
            report.setdefault(key, {})[str(group)] = [psnr, ssim, len(rows)]
        print(f"| {way[0]} | {way[1]} | {way[2]} | {' | '.join(cells)} |")
    print([sum(within(row[0], group) for row in found) // len(WAYS) for group in groups], "crops")
    manifest = json.loads((options.shards / "manifest.json").read_text())
    report["settings"] = {"images": options.images, "dataset": manifest["name"]}
    packages = ["torch", "torchvision", "pillow", "torchmetrics"]
    report["circumstances"] = circumstances(packages)
    write_json(options.json, report)


def within(value: float, group: tuple[float, float]) -> bool:
    """Whether a shrinkage belongs to a group."""
    return group[0] < value <= group[1]


if __name__ == "__main__":
    main()
