"""Members of plain, gzipped and nested tars, against tarfile; and damage of every kind."""

import gzip
import io
import tarfile

import pytest

from configs.errors import RefusedInput
from data_pipeline.sources.archives import (
    ArchivedImage,
    list_archive,
    reading_archive,
)
from data_pipeline.sources.input_files import InputFile
from tests.data_pipeline.archive_layouts import tar_bytes

FILES = {"a.txt": b"a" * 700, "empty": b"", "long" * 40: b"b" * 512, "c": b"c" * 70_000}


def nested() -> bytes:
    return tar_bytes({"one.tar": tar_bytes(FILES), "two.tar": tar_bytes({"d": b"d"})}, "folder")


def contents(path) -> dict[str, bytes]:
    found = {}
    with reading_archive(InputFile.at(path)) as outer:
        for tar in outer:
            for member in tar.members():
                found[f"{tar.name}/{member.name}"] = member.read()
    return found


def expected() -> dict[str, bytes]:
    found = {f"folder/one.tar/{name}": data for name, data in FILES.items()}
    return found | {"folder/two.tar/d": b"d"}


def test_places_are_those_of_tarfile(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(nested())
    with tarfile.open(path) as tar:
        reference = [(m.name, m.offset_data, m.size) for m in tar.getmembers() if m.isreg()]
    outer = list_archive(path)
    assert [(place.name, place.offset, place.size) for place in outer] == reference
    found = {}
    for tar in outer:
        for place in list_archive(path, inside=tar):
            found[place.name] = ArchivedImage(str(path), place).read()
    assert found == expected()


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_stream_gives_the_same_files(tmp_path, compress):
    path = tmp_path / "x"
    path.write_bytes(compress(nested()))
    assert contents(path) == expected()


def test_members_that_are_not_read_are_passed_over(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(nested())
    with reading_archive(InputFile.at(path)) as outer:
        assert [tar.name for tar in outer] == ["folder/one.tar", "folder/two.tar"]


def damaged(data: bytes, kind: str) -> bytes:
    inner = data.index(b"c" * 1000)
    if kind == "cut in a file":
        return data[: inner + 2000]
    if kind == "cut at a header":
        return data[: data.index(b"folder/two.tar")]
    if kind == "overwritten header":
        at = data.index(b"folder/two.tar")
        return data[:at] + b"\xff" * 512 + data[at + 512 :]
    if kind == "overwritten inner header":
        at = data.index(b"empty")
        return data[:at] + b"\xff" * 512 + data[at + 512 :]
    assert kind == "no tar"
    return b"no tar" * 1000


DAMAGE = ["cut in a file", "cut at a header", "overwritten header", "no tar"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", [*DAMAGE, "overwritten inner header"])
def test_a_damaged_stream_is_refused_not_cut_short(tmp_path, kind, compress):
    path = tmp_path / "x"
    path.write_bytes(compress(damaged(nested(), kind)))
    with pytest.raises(RefusedInput, match=rf"{path} is cut short, damaged or not a tar"):
        contents(path)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_archive_is_not_listed(tmp_path, kind):
    path = tmp_path / "x"
    path.write_bytes(damaged(nested(), kind))
    with pytest.raises(RefusedInput, match=rf"{path} is not a plain, complete tar"):
        list_archive(path)


def test_damage_of_an_inner_tar_names_it(tmp_path):
    path = tmp_path / "x"
    inner = tar_bytes(FILES)
    without_end = inner[: inner.rindex(b"c") + 1]
    without_end += bytes(-len(without_end) % 512)
    path.write_bytes(tar_bytes({"one.tar": without_end, "two.tar": tar_bytes({"d": b"d"})}))
    first, second = list_archive(path)
    with pytest.raises(RefusedInput, match=r"x: one\.tar is not .*end an archive are missing"):
        list_archive(path, inside=first)
    assert [place.name for place in list_archive(path, inside=second)] == ["two.tar/d"]


def test_damage_that_only_the_checksum_tells_is_refused(tmp_path):
    path = tmp_path / "x"
    data = bytearray(gzip.compress(nested(), compresslevel=0))
    data[data.index(b"c" * 1000) + 500] = 0
    path.write_bytes(data)
    with pytest.raises(RefusedInput, match="CRC check failed"):
        contents(path)


def test_an_archive_that_shrank_is_an_error_of_the_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(tar_bytes({"c": b"c" * 70_000}))
    (place,) = list_archive(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(OSError, match="ends within the file, after 488 bytes"):
        ArchivedImage(str(path), place).read()


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_stream_keeps_no_list_of_what_it_has_read(tmp_path, compress):
    path = tmp_path / "x"
    path.write_bytes(compress(tar_bytes({f"{number}": b"x" for number in range(50)})))
    with reading_archive(InputFile.at(path)) as members:
        next(members)
        assert members.gi_frame.f_locals["tar"].members == []


def test_what_is_not_wanted_of_a_plain_archive_is_not_read(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(tar_bytes({"one.tar": tar_bytes({f"{n}": bytes(1 << 20) for n in range(9)})}))
    num_read = []

    class Counted(io.FileIO):
        def readinto(self, buffer):
            num_read.append(super().readinto(buffer))
            return num_read[-1]

    class Place(InputFile):
        def open(self):
            return io.BufferedReader(Counted(path), 1 << 16)

    with reading_archive(Place.at(path)) as outer:
        names = [member.name for tar in outer for member in tar.members()]
    assert names == [f"{n}" for n in range(9)]
    assert sum(num_read) < 3 << 20
