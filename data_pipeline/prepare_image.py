"""An image file as it goes into a shard: its own bytes, unless it has to be stored anew.

By default every image is decoded, to leave out those that do not. `check="quick"` costs
microseconds: a JPEG or PNG that is whole and of a usual kind is taken, and only what looks
otherwise is decoded to know.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, Literal

from configs.errors import RefusedInput
from data_pipeline.image_header import (
    CONVERTED,
    EXTENSIONS,
    ImageHeader,
    NotAnImage,
    looks_whole,
    read_header,
    to_png,
)

Check = Literal["quick", "decode"]
CHROMA_SUBSAMPLING = {"444": 0, "422": 1, "420": 2}


@dataclass(frozen=True)
class ImageRecipe:
    """What is done with each image file.

    Images with a shorter side over `max_side` pixels are stored anew at that size, JPEG and WebP as
    JPEG of `quality` (1 to 95) and `chroma` subsampling, the rest as PNG. `check` says how files
    are looked at; those that do not decode are left out unless `keep_broken`.
    """

    max_side: int | None = None
    quality: int = 90
    chroma: str = "420"
    check: Check = "decode"
    keep_broken: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers that make no images."""
        if self.max_side is not None and self.max_side < 8:
            raise RefusedInput(f"--max-side {self.max_side}: give at least 8 (pixels)")
        if not 1 <= self.quality <= 95:
            raise RefusedInput(f"--quality {self.quality}: give 1 to 95")
        if self.chroma not in CHROMA_SUBSAMPLING:
            raise RefusedInput(
                f"--chroma {self.chroma}: choose one of {', '.join(CHROMA_SUBSAMPLING)}"
            )
        if self.check not in ("quick", "decode"):
            raise RefusedInput(f"--check {self.check}: choose quick or decode")
        if self.max_side is None and (self.quality, self.chroma) != (90, "420"):
            raise RefusedInput(
                "--quality and --chroma apply to images that --max-side makes smaller; without it "
                "every image keeps its bytes"
            )

    @property
    def decodes_all(self) -> bool:
        """Whether (nearly) every image has to be decoded, which other processes can share."""
        return self.max_side is not None or self.check == "decode"

    def recipe_facts(self) -> dict[str, Any]:
        """What of the recipe decides the bytes and is not the default."""
        facts: dict[str, Any] = {}
        if self.max_side is not None:
            facts |= {"max_side": self.max_side, "quality": self.quality, "chroma": self.chroma}
        if self.check != "decode":
            facts["check"] = self.check
        if self.keep_broken:
            facts["keep_broken"] = True
        return facts


@dataclass(frozen=True)
class PreparedImage:
    """An image as it goes into the tar; `change` says what was done to it, "" nothing.

    "broken" is a file that does not decode and was kept.
    """

    data: bytes
    extension: str
    width: int
    height: int
    change: Literal["", "converted", "shrunk", "broken"] = ""


def prepare_content(content: bytes | OSError, recipe: ImageRecipe) -> PreparedImage | str:
    """The image of a file, or why it has to be left out; `content` may be what reading raised."""
    if isinstance(content, OSError):
        return content.strerror or str(content)
    try:
        return prepare_image(content, recipe)
    except NotAnImage as reason:
        return str(reason)


def prepare_image(data: bytes, recipe: ImageRecipe) -> PreparedImage:
    """Check an image file and store it anew where the recipe asks for that.

    Raises:
        NotAnImage: It is no image, or does not decode and is not to be kept.
    """
    header = read_header(data)
    try:
        if recipe.max_side is not None and min(header.width, header.height) > recipe.max_side:
            return _shrink(data, header, recipe, recipe.max_side)
        if header.format in CONVERTED:
            return PreparedImage(to_png(data), "png", header.width, header.height, "converted")
        if recipe.check == "decode" or not looks_whole(data, header):
            _decode(data)
    except NotAnImage:
        if not recipe.keep_broken or header.format in CONVERTED:
            raise
        return _unchanged(data, header, "broken")
    return _unchanged(data, header)


def _unchanged(
    data: bytes, header: ImageHeader, change: Literal["", "broken"] = ""
) -> PreparedImage:
    return PreparedImage(data, EXTENSIONS[header.format], header.width, header.height, change)


def _decode(data: bytes) -> Any:
    """Pixels as training would see them, a uint8 tensor (3, height, width)."""
    # Imported here: torch takes seconds, and most builds need to decode nothing.
    from configs.data_groups import LoaderConfig
    from data_pipeline.broken import BrokenImage
    from data_pipeline.decode import decode_image

    try:
        return decode_image(data, max_pixels=LoaderConfig().max_image_pixels)
    except BrokenImage as error:
        raise NotAnImage(f"does not decode: {error}") from error


def _shrink(data: bytes, header: ImageHeader, recipe: ImageRecipe, max_side: int) -> PreparedImage:
    """The image with a shorter side of `max_side` pixels, upright, RGB (transparency over white).

    Lanczos with antialiasing, as Pillow computes it.
    """
    from PIL import Image

    pixels = _decode(data)
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    scale = max_side / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if header.format in ("JPEG", "MPO", "WEBP"):
        chroma = CHROMA_SUBSAMPLING[recipe.chroma]
        image.save(buffer, "JPEG", quality=recipe.quality, subsampling=chroma)
        return PreparedImage(buffer.getvalue(), "jpg", width, height, "shrunk")
    image.save(buffer, "PNG")
    return PreparedImage(buffer.getvalue(), "png", width, height, "shrunk")
