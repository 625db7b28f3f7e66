"""Small ImageNet archives and parquet files in their official layouts."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.io

from tests.data_pipeline.official_layouts import hash_of, image_bytes

# By ILSVRC2012_ID, 1 first; not in the order of the WordNet ids. The fourth is an inner node.
SYNSETS = (
    ("n03000001", "kit fox, Vulpes macrotis", 0),
    ("n01000002", "English setter", 0),
    ("n02000003", "Siberian husky", 0),
    ("n09000004", "dog", 3),
)
TRUTH = (3, 1, 2, 1, 2)


def tar_bytes(files: dict[str, bytes], folder: str = "") -> bytes:
    """A plain tar of files in the order given, behind an entry for their folder, if any."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if folder:
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            tar.addfile(entry)
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}" if folder else name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def synset_tar(wnid: str, count: int) -> bytes:
    """A synset's tar as ImageNet has it; images are not in the order of their names."""
    numbers = [number * 7 % 1000 for number in range(count, 0, -1)]
    return tar_bytes({f"{wnid}_{n}.JPEG": image_bytes(hash_of(wnid, n)) for n in numbers})


def devkit_bytes(truth: tuple[int, ...] = TRUTH) -> bytes:
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("gloss", object)]
    kinds += [("num_children", object), ("children", object), ("wordnet_height", object)]
    rows = [
        (number, wnid, words, "gloss", children, np.arange(children), 0)
        for number, (wnid, words, children) in enumerate(SYNSETS, start=1)
    ]
    meta = io.BytesIO()
    scipy.io.savemat(meta, {"synsets": np.array(rows, dtype=kinds)[:, None]})
    lines = "".join(f"{number}\n" for number in truth)
    files = {
        "readme.txt": b"The development kit",
        "data/meta.mat": meta.getvalue(),
        "data/ILSVRC2012_validation_ground_truth.txt": lines.encode(),
    }
    return gzip.compress(tar_bytes(files, "ILSVRC2012_devkit_t12"), mtime=0)


def imagenet1k(root: Path) -> Path:
    """Three classes of 3, 4 and 2 training images, five validation images, the devkit."""
    root.mkdir(parents=True, exist_ok=True)
    leaves = [wnid for wnid, _, children in SYNSETS if not children]
    train = {
        f"{wnid}.tar": synset_tar(wnid, count)
        for wnid, count in zip(leaves, (3, 4, 2), strict=True)
    }
    val = {f"ILSVRC2012_val_0000000{n}.JPEG": image_bytes(n) for n in (2, 1, 5, 3, 4)}
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(train))
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(val))
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit_bytes())
    return root


def imagenet21k(root: Path, *, gzipped: bool, images: int = 4) -> Path:
    """Four synsets in an archive of either kind; gives the archive."""
    root.mkdir(parents=True, exist_ok=True)
    wnids = ("n00000020", "n00000010", "n00000040", "n00000030")
    synsets = {f"{wnid}.tar": synset_tar(wnid, images) for wnid in wnids}
    if not gzipped:
        archive = root / "fall11_whole.tar"
        archive.write_bytes(tar_bytes(synsets))
        return archive
    archive = root / "winter21_whole.tar.gz"
    archive.write_bytes(gzip.compress(tar_bytes(synsets, "winter21_whole"), mtime=0))
    return archive


def parquet_file(
    path: Path, numbers: range, *, names: list[str] | None = None, label: str = "label"
) -> Path:
    """Rows of images, labelled by their number modulo 3, in row groups of 4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": image_bytes(n), "path": f"{n}.jpg"} for n in numbers]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = pa.array([n % 3 for n in numbers], pa.int64())
    table = pa.table({"image": pa.array(images, kind), label: labels})
    if names is not None:
        features = {
            "image": {"_type": "Image"},
            label: {"names": names, "_type": "ClassLabel"},
        }
        noted = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": noted})
    pq.write_table(table, path, row_group_size=4)
    return path


MIDS = ("/m/0c", "/m/0a", "/m/0b", "/m/0d")
OPEN_IMAGES_LABELS = """\
ImageID,Source,LabelName,Confidence
{0},verification,/m/0a,1
{0},verification,/m/0b,0
{1},crowdsource-verification,/m/0c,1
{1},verification,/m/0a,1
{1},verification,/m/0c,0
{2},verification,/m/0d,1
{3},verification,/m/0b,0
"""
OPEN_IMAGES_GUESSES = """\
ImageID,Source,LabelName,Confidence
{0},machine,/m/0b,0.9
{0},machine,/m/0c,0.7
{3},machine,/m/0c,0.6
{4},machine,/m/0a,0.7
"""


def image_id(number: int) -> str:
    """An id of OpenImages: 16 hexadecimal digits, of which some are letters."""
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}"


def open_images(root: Path, *, archived: bool, version: str = "oidv6-") -> Path:
    """Six images in `train_0` and `train_a`; classes, labels, and the list without /m/0d."""
    root.mkdir(parents=True, exist_ok=True)
    ids = [image_id(number) for number in range(1, 7)]
    header = "LabelName,DisplayName\n" if version else ""
    names = '/m/0c,"Dog, big"\n/m/0a,Cat\n/m/0b,Tree\n/m/0d,Sky\n'
    (root / f"{version}class-descriptions.csv").write_text(header + names)
    (root / f"{version}classes-trainable.txt").write_text("/m/0c\n/m/0a\n/m/0b\n")
    for kind, text in (("human", OPEN_IMAGES_LABELS), ("machine", OPEN_IMAGES_GUESSES)):
        path = root / f"{version}train-annotations-{kind}-imagelabels.csv"
        path.write_text(text.format(*ids))
    for part, numbers in (("train_0", (0, 3, 5)), ("train_a", (1, 2, 4))):
        files = {f"{part}/{ids[n]}.jpg": image_bytes(n) for n in numbers}
        if archived:
            (root / f"{part}.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))
            continue
        for name, data in files.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(data)
    return root
