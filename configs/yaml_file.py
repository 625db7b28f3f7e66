"""Read a YAML config file and say exactly where something in it is wrong.

A file may begin with `extends: OTHER.yaml` (beside it, or a path from there): its own keys then
stand over the other's.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from configs.errors import RefusedInput

T = TypeVar("T", bound=BaseModel)

EXTENDS = "extends"


@dataclass(frozen=True)
class YamlFile:
    """A parsed config file.

    Attributes:
        path: Where it was read from.
        values: Its keys and values, nested as in the file, over those of the file it extends.
        places: "file:line" of every dotted key.
    """

    path: Path
    values: dict[str, Any]
    places: dict[str, str]

    def place(self, key: str) -> str:
        """`file:line` of a dotted key (or of the nearest group around it), for messages."""
        while key and key not in self.places:
            key = key.rpartition(".")[0]
        return self.places[key] if key else str(self.path)


def read_yaml(path: Path, option: str = "--config") -> YamlFile:
    """Parse `path`, which `option` named, and the files it extends.

    Raises:
        RefusedInput: A file is missing, unreadable, not YAML (its line is shown), no mapping, or
            extends itself.
    """
    files = [_read_one(path, option)]
    while (given := files[-1].values.pop(EXTENDS, None)) is not None:
        place = files[-1].place(EXTENDS)
        if not isinstance(given, str):
            raise RefusedInput(f"{place}: {EXTENDS} = {given!r}: give the path of one YAML file")
        below = files[-1].path.parent / given
        if any(below.resolve() == file.path.resolve() for file in files):
            raise RefusedInput(f"{place}: {EXTENDS} = {given} comes back to a file that extends it")
        files.append(_read_one(below, f"{place}: {EXTENDS}"))
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for file in reversed(files):
        values = _over(values, file.values)
        places |= file.places
    return YamlFile(path, values, places)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Both groups of keys; where both have one, that of `above`."""
    merged = dict(below)
    for key, value in above.items():
        nested = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = _over(below[key], value) if nested else value
    return merged


def _read_one(path: Path, option: str) -> YamlFile:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [str(p) for p in sorted(path.parent.glob("*.yaml"))]
        near = difflib.get_close_matches(str(path), siblings, n=1, cutoff=0.5)
        hint = f"; perhaps you meant {near[0]}" if near else "; give the path of a YAML file"
        raise RefusedInput(f"{option} {path}: there is no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise RefusedInput(f"{option} {path}: cannot be read as text: {problem}") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except yaml.YAMLError as problem:
        raise RefusedInput(_syntax_message(path, text, problem)) from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RefusedInput(f"{path}: holds a {type(values).__name__}; expected `key: value` lines")
    return YamlFile(path, values, {k: f"{path}:{n}" for k, n in _key_lines(node).items()})


def validate(cls: type[T], file: YamlFile) -> T:
    """Build `cls` from a file's values.

    Raises:
        RefusedInput: Unknown keys (the nearest name is offered), wrong types, values out of bounds,
            impossible combinations; each with the key, the value and its `file:line`.
    """
    _refuse_other_stage(cls, file)
    _refuse_unknown_keys(cls, file, file.values, "")
    try:
        return cls.model_validate(file.values)
    except ValidationError as problem:
        found = [_validation_message(error, file) for error in problem.errors()]
        raise RefusedInput("\n       ".join(found)) from None


def _refuse_other_stage(cls: type[BaseModel], file: YamlFile) -> None:
    if "stage" not in cls.model_fields:
        return
    expected = cls.model_fields["stage"].default
    found = file.values.get("stage")
    if found == expected:
        return
    if found is None:
        raise RefusedInput(f"{file.path}: has no `stage:` line; add `stage: {expected}`")
    entry = {"pretrain": "launch/pretrain.py", "finetune": "finetune/run.py"}.get(str(found))
    use = f"start it with {entry}" if entry else f"write `stage: {expected}`"
    raise RefusedInput(
        f"{file.place('stage')}: stage = {found!r}, "
        f"but this command reads {expected} configs; {use}"
    )


def _refuse_unknown_keys(
    cls: type[BaseModel], file: YamlFile, values: dict[Any, Any], prefix: str
) -> None:
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if key not in cls.model_fields:
            near = difflib.get_close_matches(str(key), cls.model_fields, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else _known(cls)
            raise RefusedInput(f"{file.place(dotted)}: unknown key {dotted}; {hint}")
        section = section_class(cls, key)
        if section is None:
            continue
        if not isinstance(value, dict):
            raise RefusedInput(
                f"{file.place(dotted)}: {dotted} = {value!r} is a group; indent its keys below it"
            )
        _refuse_unknown_keys(section, file, value, f"{dotted}.")


def section_class(cls: type[BaseModel], field: str) -> type[BaseModel] | None:
    """The class of a nested group of options, or None for a plain option."""
    annotation = cls.model_fields[field].annotation
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _known(cls: type[BaseModel]) -> str:
    return "known keys here: " + ", ".join(cls.model_fields)


def _validation_message(error: Any, file: YamlFile) -> str:
    key = ".".join(str(part) for part in error["loc"])
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{file.place(key)}: {text}"
    return f"{file.place(key)}: {key} = {error['input']!r}: {text[0].lower()}{text[1:]}"


def _syntax_message(path: Path, text: str, problem: yaml.YAMLError) -> str:
    mark = getattr(problem, "problem_mark", None)
    what = getattr(problem, "problem", None) or str(problem)
    if mark is None:
        return f"{path}: not valid YAML: {what}"
    lines = text.splitlines()
    shown = lines[mark.line] if mark.line < len(lines) else ""
    pointer = " " * mark.column + "^"
    return f"{path}:{mark.line + 1}: not valid YAML: {what}\n       {shown}\n       {pointer}"


def _key_lines(node: yaml.Node | None, prefix: str = "") -> dict[str, int]:
    if not isinstance(node, yaml.MappingNode):
        return {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        dotted = f"{prefix}{key.value}"
        lines[dotted] = key.start_mark.line + 1
        lines.update(_key_lines(value, f"{dotted}."))
    return lines
