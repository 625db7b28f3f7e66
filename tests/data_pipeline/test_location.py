"""What a manifest may name, and what a message may show."""

from dataclasses import replace
from pathlib import Path

import pytest

from configs.errors import RefusedInput
from data_pipeline.location import (
    ShardAccess,
    dataset_url,
    is_url,
    locate_shard,
    redacted,
    shown,
)

HERE = Path("/data/train")
THERE = "https://host/in21k"
ALL = ShardAccess(absolute_shards=True, allow_commands=True, cache_dir=Path("/cache"))


@pytest.mark.parametrize(
    ("origin", "name", "expected"),
    [
        (HERE, "train-000000.tar", HERE / "train-000000.tar"),
        (HERE, "sub/a.tar", HERE / "sub/a.tar"),
        (HERE, "..a.tar", HERE / "..a.tar"),
        (THERE, "sub/a.tar", f"{THERE}/sub/a.tar"),
        (THERE, "a b?c#d%2e.tar", f"{THERE}/a%20b%3Fc%23d%252e.tar"),
        ("s3://bucket/in21k", "a b?.tar", "s3://bucket/in21k/a b?.tar"),
    ],
)
def test_plain_names_lie_below_the_manifest(origin, name, expected):
    assert locate_shard(origin, name, ShardAccess()) == expected


OUTSIDE = [
    "/etc/passwd",
    "../other/a.tar",
    "sub/../../a.tar",
    "..\\a.tar",
    "..",
    "",
    "a\0.tar",
    "https://elsewhere/a.tar",
    "file:///etc/passwd",
    "s3://bucket/a.tar",
    "pipe:touch owned",
    "simplecache::https://elsewhere/a.tar",
    "zip://a.tar::file:///b.zip",
]


@pytest.mark.parametrize("origin", [HERE, THERE, "s3://bucket/in21k"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_outside_are_refused(origin, name):
    with pytest.raises(RefusedInput):
        locate_shard(origin, name, ShardAccess())


@pytest.mark.parametrize(
    ("origin", "name", "expected"),
    [
        (HERE, "/elsewhere/a.tar", Path("/elsewhere/a.tar")),
        (HERE, "file:///elsewhere/a.tar", Path("/elsewhere/a.tar")),
        (HERE, "https://elsewhere/a.tar?x=1", "https://elsewhere/a.tar?x=1"),
        (THERE, "s3://bucket/a.tar", "s3://bucket/a.tar"),
        (HERE, "pipe:cat a.tar", "pipe:cat a.tar"),
    ],
)
def test_what_was_asked_for_is_allowed(origin, name, expected):
    assert locate_shard(origin, name, ALL) == expected


@pytest.mark.parametrize(
    ("origin", "name", "access"),
    [
        (THERE, "/etc/passwd", ALL),  # a stranger's manifest has no business with local files
        (THERE, "file:///etc/passwd", ALL),
        (THERE, "FILE:///etc/passwd", ALL),
        (THERE, "git:///srv/project:HEAD@secrets", ALL),
        (HERE, "/elsewhere/../a.tar", ALL),
        (HERE, "simplecache::https://elsewhere/a.tar", ALL),
        (HERE, "pipe:cat a.tar", replace(ALL, allow_commands=False)),
        (HERE, "pipe:cat a.tar", replace(ALL, cache_dir=None)),
    ],
)
def test_some_names_are_never_followed(origin, name, access):
    with pytest.raises(RefusedInput):
        locate_shard(origin, name, access)


@pytest.mark.parametrize(
    "place",
    [
        "https://user:hunter2@host/x",
        "https://host/x?sig=hunter2",
        "https://host/x#hunter2",
        "pipe:curl -u me:hunter2 https://host/x",
        "simplecache::s3://hunter2:x@bucket/x",
    ],
)
def test_a_dataset_url_with_secrets_is_refused_without_showing_them(place):
    with pytest.raises(RefusedInput) as refused:
        dataset_url(place)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "GET https://me:hunter2@host/a.tar failed",
        "https://host/a.tar?X-Amz-Signature=hunter2&X-Amz-Credential=hunter2",
        "Max retries exceeded with url: /a.tar?sv=1&sig=hunter2 (Caused by x)",
        "{'Authorization': 'Bearer hunter2'}",
        "aws_secret_access_key=hunter2",
        "token: hunter2, more",
        shown("pipe:curl -H 'x: hunter2' https://host/a.tar"),
    ],
)
def test_messages_hold_no_secrets(text):
    assert "hunter2" not in redacted(text)


def test_messages_keep_what_finds_the_file():
    assert redacted("https://me:x@host/d/a.tar?sig=x: 404") == "https://***@host/d/a.tar?... 404"
    assert redacted("s3://bucket/d/a.tar") == "s3://bucket/d/a.tar"


def test_urls_and_paths_are_told_apart():
    assert all(is_url(text) for text in ("http://h/x", "s3://b", "memory://x", "pipe:cat x"))
    assert not any(is_url(text) for text in ("shards/x", "/a:b/c", Path("a"), "c:/x"))
    assert dataset_url("https://host/in21k/") == "https://host/in21k"
