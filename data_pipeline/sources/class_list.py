"""Lists of classes in text files: an identifier a line, with or without a name behind it."""

from __future__ import annotations

from pathlib import Path

from configs.errors import RefusedInput
from data_pipeline.sources.source import read_text_lines


def read_class_list(path: Path) -> dict[str, str]:
    """From identifier (the first word of a line) to the line, words parted by single blanks.

    The order of the lines numbers the classes.

    Raises:
        RefusedInput: It cannot be read, is empty, or names a class twice.
    """
    classes: dict[str, str] = {}
    for number, line in enumerate(read_text_lines(path), start=1):
        words = line.split()
        if words[0] in classes:
            raise RefusedInput(f"--classes {path}, line {number}: {words[0]} was there before")
        classes[words[0]] = " ".join(words)
    if not classes:
        raise RefusedInput(f"--classes {path} is empty; give a class a line")
    return classes
