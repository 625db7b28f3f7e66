"""The tar writer against tarfile and webdataset, byte for byte."""

import hashlib
import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.tar_writer import LARGEST_MEMBER_BYTES, ShardTar, member_header

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=99)


@given(name=NAMES, size=st.integers(0, LARGEST_MEMBER_BYTES))
@settings(max_examples=300, deadline=None)
def test_headers_are_those_of_tarfile(name, size):
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o444
    assert member_header(name.encode(), size) == member.tobuf(tarfile.USTAR_FORMAT)


def write(samples) -> tuple[bytes, ShardTar, list[int]]:
    file = io.BytesIO()
    tar = ShardTar(file)
    offsets = [
        tar.add(key, ("cls", label), (extension, data)) for key, label, extension, data in samples
    ]
    tar.close()
    return file.getvalue(), tar, offsets


@pytest.mark.parametrize("sizes", [[], [0], [1, 511, 512, 513], [700_000, 3, 2_000_000]])
def test_the_whole_is_what_webdataset_writes(sizes):
    from webdataset import TarWriter

    samples = [
        (f"{number:09d}", str(number).encode(), "jpg", bytes([number + 1]) * size)
        for number, size in enumerate(sizes)
    ]
    content, tar, offsets = write(samples)
    expected = io.BytesIO()
    with TarWriter(expected, user="", group="", mtime=0, encoder=False) as writer:
        for key, label, extension, data in samples:
            writer.write({"__key__": key, "cls": label, extension: data})
    assert content == expected.getvalue()
    assert tar.num_bytes == len(content)
    assert tar.sha256() == hashlib.sha256(content).hexdigest()
    for offset, (_, _, _, data) in zip(offsets, samples, strict=True):
        assert content[offset : offset + len(data)] == data


def test_labels_longer_than_a_block_move_the_image():
    content, _, [offset] = write([("k", b"7" * 600, "png", b"image")])
    assert content[offset : offset + 5] == b"image"
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        assert tar.extractfile("k.cls").read() == b"7" * 600
