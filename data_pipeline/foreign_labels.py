"""The label of a sample that was written elsewhere: where it is, and what it becomes.

It is the sample's `cls` (a number or a class name), else a field of its `json`. A field whose name
begins with a dot is another member, such as the text in `.txt`; `__key__` is the sample's own key.
A label map, from a file, says which class a label becomes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from configs.durable_files import write_atomically
from configs.errors import RefusedInput
from data_pipeline.manifest import Manifest
from data_pipeline.tar_samples import TarSample

RawLabel = int | str

KEY_FIELD = "__key__"
# Not label_map.json: that may be the user's own file in the shards' folder.
APPLIED_MAP_FILE = "index.label_map.json"


class Unlabelled(Exception):
    """A sample whose label cannot be used; the message is the reason."""


def read_label(sample: TarSample, file: IO[bytes], label_field: str) -> RawLabel:
    """The label of a sample as it is written there: a number or a name.

    Raises:
        Unlabelled: There is none, or it is neither a whole number nor text.
    """
    if label_field == KEY_FIELD:
        return sample.key
    extension = label_field[1:] if label_field.startswith(".") else "cls"
    if extension in sample.members:
        return _number_or_name(sample.members[extension].read(file), extension)
    if label_field.startswith("."):
        raise Unlabelled(f"no {label_field} beside the image")
    if "json" not in sample.members:
        raise Unlabelled("neither .cls nor .json beside the image")
    try:
        fields = json.loads(sample.members["json"].read(file))
    except ValueError as error:
        raise Unlabelled(f"its .json cannot be read: {error}") from error
    if not isinstance(fields, dict) or label_field not in fields:
        raise Unlabelled(f"its .json has no field '{label_field}'")
    label = fields[label_field]
    if isinstance(label, bool) or not isinstance(label, int | str):
        raise Unlabelled(f"'{label_field}' is {label!r}, neither a whole number nor text")
    return label


def mapped_label(label: RawLabel, label_map: Mapping[str, str] | None) -> RawLabel:
    """The class that a label becomes; itself without a map.

    Raises:
        Unlabelled: The map leaves it out.
    """
    if label_map is None:
        return label
    if str(label) not in label_map:
        raise Unlabelled("its label is not in the label map")
    return label_map[str(label)]


def save_label_map(folder: Path, label_map: Mapping[str, str]) -> None:
    """Keep the map that was applied beside the index, so that `verify` can apply it again."""
    write_atomically(folder / APPLIED_MAP_FILE, _text(label_map))


def load_label_map(folder: Path, manifest: Manifest) -> dict[str, str] | None:
    """The map that the index was made with; None if it was made without.

    Raises:
        RefusedInput: The file is missing or another one.
    """
    digest = manifest.source.get("label_map")
    if digest is None:
        return None
    path = folder / APPLIED_MAP_FILE
    try:
        label_map: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RefusedInput(f"{path} cannot be read ({error}); index the shards anew") from error
    if label_map_digest(label_map) != digest:
        raise RefusedInput(
            f"{path} is not the label map that the index was made with; index the shards anew"
        )
    return label_map


def label_map_digest(label_map: Mapping[str, str]) -> str:
    """SHA-256 (hex) of what a map says, whatever the order of its lines."""
    return hashlib.sha256(_text(label_map).encode()).hexdigest()


def _text(label_map: Mapping[str, str]) -> str:
    return json.dumps(label_map, sort_keys=True, ensure_ascii=False, indent=0) + "\n"


def _number_or_name(data: bytes, extension: str) -> RawLabel:
    text = data.decode("utf-8", errors="replace").strip()
    if not text:
        raise Unlabelled(f"its .{extension} is empty")
    try:
        return int(text)
    except ValueError:
        return text
