"""Where a dataset and its shards lie: folders, URLs, and which of them a manifest may name.

Manifests are downloaded from strangers, so a name in one is data to be checked: it stays within the
manifest's own folder or URL prefix unless the user asked for more (`data.absolute_shards`), and
never becomes a command unless the user asked for that (`data.allow_commands`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from configs.data_groups import DataConfig
from configs.errors import RefusedInput

COMMAND_PREFIX = "pipe:"
# A local file, or the URL of a remote one (a string that may also be a `pipe:` command).
ShardLocation = Path | str

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What fsspec opens on this machine, directly or wrapped.
_LOCAL_PROTOCOLS = frozenset(
    "file local git dir zip tar libarchive reference generic asyncwrapper "
    "cached blockcache filecache simplecache".split()
)
_USER_INFO = re.compile(r"(://)[^/@\s'\"]+@")
# Signed URLs carry their secret in the query; nothing after a "?" is needed to find a file again.
_QUERY = re.compile(r"((?:://|url: )[^\s'\"?#]*)[?#][^\s'\")>]+")
_SECRET = re.compile(
    r"(?i)((?:authorization|signature|secret|token|password|credential|access_?key(?:_?id)?)"
    r"['\"]?\s*[:=]\s*)['\"]?(?:(?:bearer|basic)\s+)?[^\s'\",;&)]+"
)


@dataclass(frozen=True)
class ShardAccess:
    """How shards that are not files of the dataset's own folder are reached.

    Attributes:
        cache_dir: folder of fetched shards, shared by the ranks of a node; None reads remote images
            one by one, straight from their server.
        cache_bytes: bound of the shards in `cache_dir`.
        absolute_shards: whether a manifest may name shards outside its own folder or URL.
        allow_commands: whether `pipe:` shards may run their command.
        retry_seconds: time without progress after which a transfer is given up.
        stall_seconds: time in which a connection, or the next piece of a body, must arrive.
        local_ranks: ranks that share `cache_dir`.
    """

    cache_dir: Path | None = None
    cache_bytes: int = DataConfig.model_fields["cache_bytes"].default
    absolute_shards: bool = False
    allow_commands: bool = False
    retry_seconds: float = DataConfig.model_fields["retry_seconds"].default
    stall_seconds: float = DataConfig.model_fields["stall_seconds"].default
    local_ranks: int = 1

    @classmethod
    def from_config(cls, config: DataConfig, local_ranks: int = 1) -> ShardAccess:
        """What `data.*` says, for one of `local_ranks` ranks of a node."""
        return cls(
            cache_dir=config.cache_dir,
            cache_bytes=config.cache_bytes,
            absolute_shards=config.absolute_shards,
            allow_commands=config.allow_commands,
            retry_seconds=config.retry_seconds,
            stall_seconds=config.stall_seconds,
            local_ranks=local_ranks,
        )


@dataclass(frozen=True)
class Origin:
    """Where a dataset was opened (`url` None: a local folder), and how its shards are reached."""

    url: str | None = None
    access: ShardAccess = ShardAccess()


HERE = Origin()


def is_url(place: Path | str) -> bool:
    """Whether a place is a URL (or a `pipe:` command) rather than a path."""
    text = str(place)
    return bool(_URL.match(text)) or text.startswith(COMMAND_PREFIX)


def redacted(text: str) -> str:
    """A message or URL without passwords, signed queries and access keys."""
    text = _QUERY.sub(r"\1?...", _USER_INFO.sub(r"\1***@", text))
    return _SECRET.sub(r"\1***", text)


def shown(location: ShardLocation) -> str:
    """A shard's location for messages; of a command only that it is one, as it may hold secrets."""
    text = str(location)
    return "a pipe: command" if text.startswith(COMMAND_PREFIX) else redacted(text)


def dataset_url(place: str) -> str:
    """The URL of a dataset, checked, without a slash at its end.

    Raises:
        RefusedInput: It is a command, chained, or carries credentials, which would end up in
            config.yaml, command.txt and MLflow.
    """
    if place.startswith(COMMAND_PREFIX) or "::" in place:
        raise RefusedInput(
            f"{shown(place)} is not the URL of a dataset: commands and chained URLs (::) hold no "
            "manifest.json; give the URL of a folder"
        )
    parts = urlsplit(place)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise RefusedInput(
            f"{redacted(place)}: a dataset's URL must hold no user, password or query, because it "
            "is written to the run folder and to MLflow; put credentials into ~/.netrc or the "
            "environment (docs/remote.md)"
        )
    return place.rstrip("/")


def locate_shard(origin: Path | str, name: str, access: ShardAccess) -> ShardLocation:
    """Where the shard lies that a manifest calls `name`.

    Args:
        origin: folder or URL of the manifest.
        name: the shard's path in it.
        access: what the user allows.

    Raises:
        RefusedInput: The name leads outside `origin`, or is a command, and that was not asked for.
    """
    if name.startswith(COMMAND_PREFIX):
        return _allowed_command(origin, name, access)
    if "::" in name:
        raise RefusedInput(
            f"{shown(origin)}: its manifest names {redacted(name)!r}, a chained URL; these are "
            "never followed; index the shards themselves"
        )
    is_absolute = is_url(name) or name.startswith("/")
    if is_absolute and not access.absolute_shards:
        raise RefusedInput(
            f"{shown(origin)}: its manifest names the shard {redacted(name)}, which lies outside; "
            "if you trust this manifest, set data.absolute_shards (--absolute-shards in show)"
        )
    if not name or "\0" in name or ".." in name.replace("\\", "/").split("/"):
        raise RefusedInput(f"{shown(origin)}: its manifest names the shard {name!r}, no plain path")
    if is_url(origin):
        return _below_url(str(origin), name, is_absolute)
    is_local_url = name.startswith(("file://", "local://"))
    if is_local_url or not is_url(name):
        return Path(origin) / (name.partition("://")[2] if is_local_url else name)
    return name


def _below_url(origin: str, name: str, is_absolute: bool) -> str:
    if is_absolute:
        if not is_url(name) or name.partition("://")[0].lower() in _LOCAL_PROTOCOLS:
            raise RefusedInput(
                f"{shown(origin)}: a remote manifest names the local file {name}; it may name URLs "
                "only"
            )
        return name
    # In a key of an object store every character is itself; in an http URL some are not.
    return f"{origin}/{quote(name) if origin.startswith('http') else name}"


def _allowed_command(origin: Path | str, name: str, access: ShardAccess) -> str:
    if not access.allow_commands:
        raise RefusedInput(
            f"{shown(origin)}: its manifest names a shard that runs a command (pipe:...); if you "
            "have read that manifest and trust it, allow commands with --data.allow-commands"
        )
    if access.cache_dir is None:
        raise RefusedInput(
            f"{shown(origin)}: a command gives whole shards only, so data.cache_dir must say where "
            "to keep them"
        )
    return name
