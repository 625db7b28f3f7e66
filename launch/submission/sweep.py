"""Several runs of one config: the sets of options that `--array` stands for."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import RefusedInput

_RANGE = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True)
class Member:
    """One run of a sweep: what its folder's name ends in, and its own options."""

    label: str
    words: tuple[str, ...]


def members(sets: Sequence[str]) -> tuple[Member, ...]:
    """The runs of `--array`; without it one, without a label and options of its own.

    Args:
        sets: `option=v1,v2` words, whose combinations are run, or the path of one file with a line
            of options for each run.

    Raises:
        RefusedInput: A word is neither, or two runs would be the same.
    """
    if not sets:
        return (Member("", ()),)
    if len(sets) == 1 and "=" not in Path(sets[0]).name:
        return _from_file(Path(sets[0]))
    axes = [_axis(text) for text in sets]
    found = tuple(
        Member(
            "-".join(label for label, _ in chosen),
            tuple(word for _, words in chosen for word in words),
        )
        for chosen in itertools.product(*axes)
    )
    labels = [member.label for member in found]
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise RefusedInput(
            f"--array {' '.join(sets)}: two runs would both be called {twice}; give each value once"
        )
    return found


def _axis(text: str) -> list[tuple[str, tuple[str, str]]]:
    option, separator, values = text.partition("=")
    option = option.removeprefix("--").replace("_", "-")
    if not (option and separator and values) or option == "run-dir":
        raise RefusedInput(
            f"--array {text}: give OPTION=V1,V2 such as seed=0,1,2, or a file with a line of "
            "options for each run"
        )
    if among := _RANGE.fullmatch(values):
        chosen = [str(number) for number in range(int(among[1]), int(among[2]) + 1)]
    else:
        chosen = [value for value in values.split(",") if value]
    if not chosen:
        raise RefusedInput(f"--array {text}: holds no value")
    name = option.rpartition(".")[2]
    return [(_slug(name + value), (f"--{option}", value)) for value in chosen]


def _from_file(path: Path) -> tuple[Member, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise RefusedInput(
            f"--array {path}: cannot be read ({problem}); give OPTION=V1,V2 such as seed=0,1,2, or "
            "a file with a line of options for each run"
        ) from None
    found: list[Member] = []
    for number, line in enumerate(lines, start=1):
        try:
            words = tuple(shlex.split(line, comments=True))
        except ValueError as problem:
            raise RefusedInput(f"{path}:{number}: {str(problem).lower()}") from None
        if any(word.partition("=")[0] in ("--run-dir", "--config") for word in words):
            raise RefusedInput(f"{path}:{number}: every run gets a folder; leave {words[0]} out")
        if words:
            found.append(Member(str(len(found)), words))
    if not found:
        raise RefusedInput(f"--array {path}: holds no line of options")
    return tuple(found)


def _slug(text: str) -> str:
    """What of a value is fit for the name of a folder."""
    return re.sub(r"[^\w.+-]+", "_", text).strip("._")
