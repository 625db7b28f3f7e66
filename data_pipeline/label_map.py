"""Files that say what classes become: YAML or JSON lines of the form `class: new class`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from configs.errors import RefusedInput


def read_label_map(path: Path, option: str) -> dict[str, str]:
    """Class names and what they become, from a YAML or JSON file.

    `option` is what named the file, for messages.

    Raises:
        RefusedInput: It cannot be read, or is no mapping of names to names.
    """
    told = f"{option} {path}"
    try:
        # The base loader leaves every value a string: a class may be called 7 or `no`.
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise RefusedInput(f"{told} cannot be read as YAML or JSON: {why}") from error
    if not isinstance(values, Mapping) or not values:
        raise RefusedInput(f"{told}: expected lines of the form `class: new class`")
    for old, new in values.items():
        if not isinstance(old, str) or not isinstance(new, str) or not new:
            raise RefusedInput(
                f"{told}: class {old!r} becomes {new!r}; give one name, or leave the line out to "
                "drop the class"
            )
    return dict(values)
