"""Builds to URLs: fsspec's memory files, and a server that speaks S3."""

import functools
import os
import subprocess
import sys

import fsspec
import pytest

from configs.errors import RefusedInput
from data_pipeline import remote_store
from data_pipeline.build import build_part
from data_pipeline.merge import merge_parts
from data_pipeline.output_folder import Part
from data_pipeline.output_store import open_store
from tests.data_pipeline import memory_store, photo_builds
from tests.data_pipeline.photo_builds import build_photos, files_of
from tests.data_pipeline.s3_server import s3_server

expected = photo_builds.expected
memory = memory_store.memory
photos = photo_builds.photos


def below(prefix: str, content: dict[str, bytes]) -> dict[str, bytes]:
    return {name.removeprefix(f"{prefix}/"): content[name] for name in content}


def test_output_to_a_url_is_the_same_as_to_a_folder(photos, memory, expected):
    summary = build_photos(photos, "memory://bucket/out")
    assert below("bucket/out", memory()) == expected
    assert "to memory://bucket/out in" in summary.text()
    assert build_photos(photos, "memory://bucket/out/").already_built
    with pytest.raises(RefusedInput, match=r"already holds another dataset .*shuffle_seed"):
        build_photos(photos, "memory://bucket/out", seed=3)


def test_parts_meet_at_a_url(photos, memory, expected):
    for number in (3, 1, 2):
        part = Part(number, 3)
        options = {"shard_images": 3, "workers": 1}
        build_part("image-folder", photos, "train", "memory://out", part, **options)
    with pytest.raises(RefusedInput, match="unfinished build of something else"):
        build_photos(photos, "memory://out", seed=9)
    merge_parts("memory://out")
    assert below("out", memory()) == expected


class Killed(BaseException):
    pass


@pytest.mark.parametrize("num_objects", range(0, 16, 3))
def test_an_interrupted_upload_is_gone_on_with(photos, memory, expected, monkeypatch, num_objects):
    """Interrupted before object 0, 3, 6 ...: shards, records, and what ends a build."""
    done = []

    def step(real, *args, **options):
        if len(done) == num_objects:
            raise Killed
        done.append(args)
        return real(*args, **options)

    with monkeypatch.context() as patch:
        for name in ("create", "write"):
            real = getattr(remote_store.RemoteStore, name)
            patch.setattr(
                remote_store.RemoteStore, name, functools.partialmethod(step_of(step, real))
            )
        with pytest.raises(Killed):
            build_photos(photos, "memory://out")
            assert num_objects > 12
            raise Killed
    assert not any(name.endswith("manifest.json") for name in memory()) or num_objects > 12
    build_photos(photos, "memory://out")
    assert below("out", memory()) == expected


def step_of(step, real):
    return lambda self, *args, **options: step(real, self, *args, **options)


def test_an_object_is_complete_or_absent(memory):
    store = open_store("memory://out")
    with pytest.raises(Killed):
        with store.create("shard.tar") as file:
            file.write(b"half")
            raise Killed
    assert memory() == {} and store.size("shard.tar") is None
    with store.create("shard.tar") as file:
        file.write(b"whole")
    assert memory() == {"out/shard.tar": b"whole"}


def test_a_store_that_fails_is_a_message(photos, memory, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError("no write access to bucket")

    monkeypatch.setattr(fsspec.filesystem("memory").__class__, "_open", refuse)
    with pytest.raises(RefusedInput, match=r"memory://out cannot be written: .*no write access"):
        build_photos(photos, "memory://out")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://server/shards", "a web server can be read, not written"),
        ("s3://key:secret@bucket/x", r"--output s3://\*\*\*@bucket/x: give a plain URL"),
        ("simplecache::s3://bucket/x", "give a plain URL"),
        ("s3://bucket/x?signature=secret", "--output s3://bucket/x: give a plain URL"),
        ("nosuch://bucket/x", "nosuch://bucket/x cannot be opened: .*nosuch"),
    ],
)
def test_urls_that_cannot_be_written_are_refused(photos, url, message):
    with pytest.raises(RefusedInput, match=message) as refused:
        build_photos(photos, url)
    assert "secret" not in str(refused.value)


@pytest.mark.integration
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_parts_meet_in_a_bucket(photos, tmp_path, expected):
    """Input and output through the command, in worker processes, with the client's own requests."""

    def run(*argv: str) -> str:
        command = [sys.executable, "-m", *argv]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with s3_server("photos", "shards") as variables:
        environment = {**os.environ, **variables}
        code = (
            "import fsspec, sys\n"
            "fsspec.filesystem('s3').put(sys.argv[1] + '/', 's3://photos/', recursive=True)\n"
        )
        subprocess.run(
            [sys.executable, "-c", code, str(photos)], env=environment, check=True, timeout=300
        )
        arguments = ["data_pipeline.build", "--source", "image-folder", "--split", "train"]
        arguments += ["--input", "s3://photos", "--output", "s3://shards/photos"]
        arguments += ["--shard-images", "3", "--workers", "2"]
        run(*arguments, "--part", "2/2")
        run(*arguments, "--part", "1/2")
        assert "wrote 12 images" in run("data_pipeline.merge", "s3://shards/photos")
        assert "already holds" in run(*arguments)
        code = (
            "import fsspec, sys\n"
            "store = fsspec.filesystem('s3')\n"
            "store.get('s3://shards/photos/', sys.argv[1] + '/', recursive=True)\n"
        )
        copy = tmp_path / "copy"
        subprocess.run(
            [sys.executable, "-c", code, str(copy)], env=environment, check=True, timeout=300
        )
    found = files_of(copy)
    assert b"s3://photos/train/class2/notes.txt" in found.pop("skipped.jsonl")
    del expected["skipped.jsonl"]
    assert found == expected
    assert not any(b"test-secret" in data for data in found.values())
