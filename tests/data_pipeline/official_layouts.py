"""Tiny datasets in the official layouts, with images that are all different; seed 0 throughout."""

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

WNIDS = ("n02", "n01", "n03")  # not sorted, as in the official list


def image_bytes(number: int, *, size: tuple[int, int] = (8, 6), format: str = "JPEG") -> bytes:
    """An image file of `size` (width, height) that depends on `number`."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A small PNG file whose header declares another size."""
    data = bytearray(image_bytes(0, format="PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def image_folder(root: Path, classes: int = 3, images: int = 4) -> Path:
    """`train` and `val`; a class has `images` files in train, one of them in a folder below."""
    for split, count in (("train", images), ("val", 1)):
        for label in range(classes):
            for number in range(count):
                below = "extra/" if number == 1 else ""
                name = f"{split}/class{label}/{below}{number}.jpg"
                write(root / name, image_bytes(hash_of(split, label, number)))
    return root


def tiny_imagenet(parent: Path) -> Path:
    """200 classes become 3: three training images each, four validation images; gives `parent`."""
    root = parent / "tiny-imagenet-200"
    root.mkdir(parents=True)
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius\nn02\ttoad\nn09\tnot among them\n")
    for wnid in WNIDS:
        for number in range(3):
            data = image_bytes(hash_of(wnid, number))
            write(root / f"train/{wnid}/images/{wnid}_{number}.JPEG", data)
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text("not an image\n")
    lines = []
    for number, wnid in enumerate(("n03", "n01", "n02", "n01")):
        write(root / f"val/images/val_{number}.JPEG", image_bytes(100 + number))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t0\t7\t5\n")
    (root / "val/val_annotations.txt").write_text("".join(lines))
    return parent


def pets(parent: Path) -> Path:
    root = parent / "oxford-iiit-pet"
    lists = {
        "trainval": ["Abyssinian_2 1 1 1", "american_bulldog_7 2 2 1", "Abyssinian_1 1 1 1"],
        "test": ["american_bulldog_9 2 2 1", "Abyssinian_5 1 1 1"],
    }
    for split, lines in lists.items():
        path = write(root / f"annotations/{split}.txt", ("\n".join(lines) + "\n").encode())
        assert path.is_file()
        for line in lines:
            name = line.split()[0]
            write(root / f"images/{name}.jpg", image_bytes(hash_of(name)))
    return parent


def flowers(parent: Path) -> Path:
    """Ten images; the sets are cut to 4, 3 and 3 of them, not in ascending order."""
    root = parent / "flowers-102"
    for number in range(1, 11):
        write(root / f"jpg/image_{number:05d}.jpg", image_bytes(number))
    labels = np.array([[5, 5, 77, 102, 1, 1, 2, 5, 77, 102]], np.uint8)
    scipy.io.savemat(root / "imagelabels.mat", {"labels": labels})
    sets = {"trnid": [[3, 1, 8, 5]], "valid": [[2, 10, 4]], "tstid": [[9, 6, 7]]}
    scipy.io.savemat(root / "setid.mat", {name: np.array(v) for name, v in sets.items()})
    return parent


def cifar10(parent: Path) -> Path:
    """Five batches of two images, a test batch of three."""
    root = parent / "cifar-10-batches-py"
    root.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        _write_batch(root / name, 3 if name == "test_batch" else 2, "labels", 10, number)
    names = [f"name{label}" for label in range(10)]
    _dump(root / "batches.meta", {"label_names": names})
    return parent


def cifar100(parent: Path) -> Path:
    root = parent / "cifar-100-python"
    root.mkdir(parents=True)
    _write_batch(root / "train", 5, "fine_labels", 100, 10)
    _write_batch(root / "test", 3, "fine_labels", 100, 11)
    _dump(root / "meta", {"fine_label_names": [f"fine{label}" for label in range(100)]})
    return parent


def hash_of(*parts: object) -> int:
    """A seed that is the same in every process, unlike `hash`."""
    return int.from_bytes(repr(parts).encode(), "big") % 2**32


def _write_batch(path: Path, count: int, labels_field: str, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
    labels = rng.integers(0, classes, count).tolist()
    path.write_bytes(python2_batch(data, labels_field, labels))


def python2_batch(data: np.ndarray, labels_field: str, labels: list[int]) -> bytes:
    """The pickle that Python 2 and numpy 1 wrote of {"data": data, labels_field: labels}.

    Python 3 cannot write it: text and array contents are opcodes of byte strings (U, T), and numpy
    is asked for under its old name.
    """

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + text("b") + b"\x87R"
    dtype = b"cnumpy\ndtype\n" + text("u1") + b"K\0K\1\x87R"
    dtype += b"(K\3" + text("|") + b"NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\0tb"
    shape = b"K" + bytes([data.shape[0]]) + b"M" + struct.pack("<H", data.shape[1]) + b"\x86"
    content = b"T" + struct.pack("<I", data.nbytes) + data.tobytes()
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    state = b"(K\1" + shape + dtype + b"\x89" + content + b"tb"
    return b"\x80\x02}(" + text("data") + array + state + text(labels_field) + numbers + b"u."


def _dump(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))
