"""Decodes damaged and hostile files within a bounded address space, and reports as JSON.

    drive_decode.py mutations 2000      # real and generated files, damaged at random
    drive_decode.py hypothesis 500      # edits that hypothesis thinks of
    drive_decode.py headers             # 50,000 x 50,000 px in the header

A process of its own, because a crash or a runaway allocation must not take the tests with it.
"""

# ruff: noqa: E402 (the path is set before anything of ours is imported)
import json
import resource
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import sklearn
from PIL import Image

from data_pipeline.broken import BrokenImage
from data_pipeline.decode import decode_image
from data_pipeline.image_header import NotAnImage, read_header
from tests.data_pipeline.sample_shards import encode

MAX_PIXELS = 2_000_000
MORE_MEMORY_BYTES = 512 * 2**20
PHOTOS = Path(sklearn.__file__).parent / "datasets" / "images"
MARKERS = (b"\xff\xda", b"\xff\xc2", b"\xff\xc0", b"\xff\xdd", b"\xff\xd9", b"\xff\xff", b"IDAT")


def pristine() -> list[bytes]:
    """Two real photographs as they are, and small versions in every format."""
    whole = [(PHOTOS / name).read_bytes() for name in ("china.jpg", "flower.jpg")]
    files = []
    for name in ("china.jpg", "flower.jpg"):
        small = Image.open(PHOTOS / name).resize((80, 60))
        alpha = small.convert("RGBA")
        alpha.putalpha(100)
        files += [
            encode(small, "JPEG"),
            encode(small, "JPEG", progressive=True, subsampling=0),
            encode(small, "JPEG", restart_marker_blocks=4),
            encode(small.convert("L"), "JPEG"),
            encode(small.convert("CMYK"), "JPEG"),
            encode(small, "PNG"),
            encode(small.quantize(64), "PNG"),
            encode(alpha, "PNG"),
            encode(small, "WEBP"),
            encode(alpha, "WEBP", lossless=True),
            encode(small, "GIF"),
            encode(small, "BMP"),
        ]
    return [*whole, *files * 2]


def mutated(files: list[bytes], rng: np.random.Generator) -> bytes:
    """One of the files after one to eight random injuries."""
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(rng.integers(1, 9)):
        start = int(rng.integers(len(data) + 1)) if rng.random() < 0.7 else int(rng.integers(200))
        length = int(rng.integers(1, 1 + min(400, max(1, len(data)))))
        kind = rng.integers(7)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            data[start : start + length] = rng.bytes(length)
        elif kind == 2:
            del data[start : start + length]
        elif kind == 3:
            data[start:start] = data[start : start + length] * int(rng.integers(1, 20))
        elif kind == 4:
            del data[max(start, 20) :]
        elif kind == 5:
            marker = MARKERS[rng.integers(len(MARKERS))]
            data[start : start + len(marker)] = marker
        else:
            other = files[rng.integers(len(files))]
            data[start:] = other[start:]
    return bytes(data)


class Outcomes:
    """Decodes and counts: what became of each file, the slowest one, and the memory it took."""

    def __init__(self) -> None:
        self.counts = {"inputs": 0, "decoded": 0, "broken": 0}
        self.slowest_seconds = 0.0
        self.reasons: set[str] = set()
        self.peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def decode(self, data: bytes) -> None:
        start = time.process_time()
        try:
            image = decode_image(data, max_pixels=MAX_PIXELS)
            assert image.dim() == 3 and image.shape[0] == 3
            assert 0 < image.numel() <= 3 * MAX_PIXELS
            self.counts["decoded"] += 1
        except BrokenImage as error:
            assert str(error)
            self.reasons.add(str(error)[:200])
            self.counts["broken"] += 1
        try:
            read_header(data)
        except NotAnImage as error:
            assert str(error)
        self.counts["inputs"] += 1
        self.slowest_seconds = max(self.slowest_seconds, time.process_time() - start)

    def report(self) -> str:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return json.dumps(
            {
                **self.counts,
                "slowest_seconds": self.slowest_seconds,
                "more_memory_mib": (peak - self.peak_before) / 1024,
                "out_of_memory": [r for r in self.reasons if "alloc" in r or "memory" in r],
                "reasons": len(self.reasons),
            }
        )


def mutations(outcomes: Outcomes, count: int) -> None:
    files, rng = pristine(), np.random.default_rng(0)
    for number in range(count):
        data = mutated(files, rng)
        try:
            outcomes.decode(data)
        except BaseException:
            sys.stderr.write(f"mutation {number} of {len(data)} bytes\n")
            raise


def hypothesis_edits(outcomes: Outcomes, count: int) -> None:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st

    files = sorted(set(pristine()), key=len)[:-2]
    edit = st.tuples(st.integers(0, 5000), st.integers(0, 40), st.binary(max_size=40))

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(files), st.lists(edit, max_size=6), st.one_of(st.none(), st.binary()))
    def try_one(file: bytes, edits: list[tuple[int, int, bytes]], raw: bytes | None) -> None:
        data = bytearray(file)
        for place, length, new in edits:
            place %= len(data) + 1
            data[place : place + length] = new
        outcomes.decode(bytes(data) if raw is None else file[:16] + raw)

    try_one()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge_files() -> dict[str, bytes]:
    """Whole files, but for 50,000 x 50,000 pixels in their headers."""
    side, small = 50_000, Image.new("RGB", (64, 64), "red")
    jpeg = bytearray(encode(small, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    progressive = bytearray(encode(small, "JPEG", progressive=True))
    frame = progressive.index(b"\xff\xc2")
    progressive[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    rgb, grey_alpha = (
        png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour, 0, 0, 0))
        for bits, colour in ((8, 2), (16, 4))
    )
    png = b"\x89PNG\r\n\x1a\n"
    exif = Image.Exif()
    exif[0x0112] = 1
    webp = bytearray(encode(small, "WEBP", exif=exif))  # an extended header: 24-bit sides
    assert webp[12:16] == b"VP8X"
    webp[24:30] = (side - 1).to_bytes(3, "little") * 2
    return {
        "jpeg": bytes(jpeg),
        "progressive jpeg": bytes(progressive),
        "png": png + rgb + pixels,
        "png by pillow": png + grey_alpha + pixels,
        "webp": bytes(webp),
    }


def headers(outcomes: Outcomes, _: int) -> None:
    readers = (partial(decode_image, max_pixels=178_956_970), read_header)
    for kind, data in huge_files().items():
        for read in readers:
            try:
                read(data)
            except (BrokenImage, NotAnImage) as error:
                sys.stderr.write(f"{kind}: {error}\n")
            else:
                raise AssertionError(f"{kind} of 50,000 x 50,000 px was accepted")
        outcomes.decode(data)


def limit_memory(more_bytes: int) -> None:
    """Let this process's address space grow by so much from now on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, resource.RLIM_INFINITY))


def main() -> None:
    kind, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
    runs: dict[str, Callable[[Outcomes, int], None]] = {
        "mutations": mutations,
        "hypothesis": hypothesis_edits,
        "headers": headers,
    }
    warnings.simplefilter("ignore")
    for data in pristine():  # every decoder is loaded before memory is measured
        decode_image(data, max_pixels=MAX_PIXELS)
        read_header(data)
    huge_files()
    limit_memory(MORE_MEMORY_BYTES)
    outcomes = Outcomes()
    runs[kind](outcomes, count)
    sys.stdout.write(outcomes.report() + "\n")


if __name__ == "__main__":
    main()
