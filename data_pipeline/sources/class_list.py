"""Lists of classes in text files: an identifier a line, with or without a name behind it."""

from __future__ import annotations

from pathlib import Path

from configs.errors import RefusedInput
from data_pipeline.sources.input_files import InputFile
from data_pipeline.sources.source import read_text_lines


def read_class_list(path: Path | InputFile) -> dict[str, str]:
    """From identifier (the first word of a line) to the line, words parted by single blanks.

    The order of the lines numbers the classes.

    Raises:
        RefusedInput: It cannot be read, is empty, or names a class twice.
    """
    classes: dict[str, str] = {}
    for number, line in enumerate(_lines(path), start=1):
        words = line.split()
        if words[0] in classes:
            raise RefusedInput(f"--classes {path}, line {number}: {words[0]} was there before")
        classes[words[0]] = " ".join(words)
    if not classes:
        raise RefusedInput(f"--classes {path} is empty; give a class a line")
    return classes


def _lines(path: Path | InputFile) -> list[str]:
    if isinstance(path, Path):
        return read_text_lines(path)
    try:
        with path.open() as file:
            text = file.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedInput(f"{path} cannot be read: {error}") from error
    return [line for line in text.splitlines() if line.strip()]
