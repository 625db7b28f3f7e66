"""From a YAML file and a command line to one checked, frozen config."""

from __future__ import annotations

import contextlib
import difflib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import tyro
import yaml
from pydantic import BaseModel, Field, create_model

from configs.errors import RefusedInput
from configs.yaml_file import YamlFile, read_yaml, section_class, validate

T = TypeVar("T", bound=BaseModel)

# Of each pair, the one given on the command line drops the file's other one.
EXCLUSIVE_OPTIONS = (
    ("schedule.total_steps", "schedule.epochs"),
    ("batch.micro_images", "batch.accumulation_steps"),
    ("few_shot.every_steps", "few_shot.every_epochs"),
    ("data.fraction", "data.images_per_class"),
    ("images_per_class", "data.images_per_class"),
    ("images_per_class", "data.fraction"),
)


@dataclass(frozen=True)
class Loaded(Generic[T]):
    """A config and where its values came from.

    Attributes:
        config: The checked config.
        config_file: The YAML file, or None when only the command line spoke.
        overrides: Dotted keys that the command line set.
    """

    config: T
    config_file: Path | None
    overrides: tuple[str, ...]


def load_config(
    cls: type[T], argv: Sequence[str], program: str, *, default_file: Path | None = None
) -> Loaded[T]:
    """Read the file that `--config` names (else `default_file`), then apply the other options.

    `--help` prints every option with the value it would have now and exits with code 0.

    Raises:
        RefusedInput: Anything wrong in the file or on the command line, in one message.
    """
    config_file, options = _take_config_option(list(argv))
    config_file = config_file or default_file
    given = tuple(dict.fromkeys(_given_keys(options)))
    if config_file is None:
        default = cls()
    else:
        file = read_yaml(config_file)
        dropped = {other for pair in EXCLUSIVE_OPTIONS for other in _replaced(pair, given)}
        default = validate(cls, YamlFile(file.path, _without(file.values, dropped), file.places))
    if {"-h", "--help"} & set(options):
        _print_help(default, config_file, options, program)
    return Loaded(_parse_options(cls, default, options, program), config_file, given)


def to_yaml(config: BaseModel) -> str:
    """The resolved config as YAML that `--config` accepts again."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: BaseModel) -> dict[str, str | int | float | bool]:
    """Every option under its dotted key; absent values as "none", lists joined by blanks."""
    return dict(_flat_items(config.model_dump(mode="json"), ""))


def _flat_items(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat_items(value, f"{prefix}{key}.")
        elif value is None:
            yield f"{prefix}{key}", "none"
        elif isinstance(value, list):
            yield f"{prefix}{key}", " ".join(str(part) for part in value)
        else:
            yield f"{prefix}{key}", value


def _take_config_option(argv: list[str]) -> tuple[Path | None, list[str]]:
    rest: list[str] = []
    path: Path | None = None
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            value = next(arguments, None)
            if value is None or value.startswith("--"):
                raise RefusedInput("--config: expected the path of a YAML file after it")
            path = Path(value)
        elif argument.startswith("--config="):
            path = Path(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    return path, rest


def _given_keys(options: list[str]) -> Iterator[str]:
    for option in options:
        if re.match(r"--[a-z]", option):
            yield option[2:].partition("=")[0].replace("-", "_")


def _replaced(pair: tuple[str, str], given: tuple[str, ...]) -> list[str]:
    return (
        []
        if all(key in given for key in pair)
        else [other for key, other in (pair, pair[::-1]) if key in given]
    )


def _without(values: dict[str, Any], dotted_keys: set[str], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without(value, dotted_keys, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in dotted_keys
    }


def _print_help(
    default: BaseModel, config_file: Path | None, options: list[str], program: str
) -> NoReturn:
    """Every option with the value it would have now, and `--config`, which is read before them."""
    field: Any = (Path | None, Field(None, description="YAML file that the values start from."))
    cls = create_model(type(default).__name__, __base__=type(default), config=field)
    cls.__doc__ = type(default).__doc__
    shown = cls.model_validate({**default.model_dump(), "config": config_file})
    tyro.cli(cls, prog=program, default=shown, args=options)
    raise AssertionError("tyro exits after printing help")


def _parse_options(cls: type[T], default: T, options: list[str], program: str) -> T:
    # tyro boxes its messages and exits; its text is taken and told in our one-line form instead.
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(cls, prog=program, default=default, args=options)
    except SystemExit:
        _refuse(cls, " ".join(complaint.getvalue().split()))


def _refuse(cls: type[BaseModel], text: str) -> NoReturn:
    # Box drawing depends on the locale; with it gone the text is: title, rule, message, rule, more.
    text = re.sub(r"[╭╰][─]? ?|[│╮╯] ?", "", text).replace("─", "-")
    message = [part.strip() for part in re.split(r"-{6,}|-+ (?=-)", text) if part.strip()][1:2]
    text = re.split(r" For full helptext", message[0] if message else text)[0].strip()
    if unknown := re.match(r"Unrecognized options: (\S+?),? ?(?:\s|$)", text):
        raise RefusedInput(_unknown_option(cls, unknown[1].rstrip(",")))
    if told := _no_number(text):
        raise RefusedInput(told)
    if several := re.match(r"Error parsing (\S+): Could not find .* arguments: \[(.*?)\]", text):
        option, values = several[1], several[2].replace("'", "").replace(",", "")
        raise RefusedInput(f"command line: {option} {values}: not of the kind that --help names")
    bound = re.match(
        r"Error parsing (\S+): \d+ validation errors? for \w+ (.*?) "
        r"\[type=(\w+), input_value=(.*?), input_type",
        text,
    )
    if bound is None:
        raise RefusedInput(f"command line: {text.removeprefix('Error parsing ')}")
    group, rule, kind, value = bound.groups()
    if kind == "value_error":
        # Of a single field's rule its name stands in front.
        raise RefusedInput(f"command line: {rule.partition('Value error, ')[2]}")
    field, _, rule = rule.partition(" ")
    raise RefusedInput(f"command line: {group}.{field} = {value}: {rule[0].lower()}{rule[1:]}")


def _no_number(text: str) -> str | None:
    """What a number was expected for, if that is what tyro complains about."""
    single = re.match(r"Error parsing (\S+): .*? (int|float)\b.*?: '(.*)'$", text)
    optional = re.match(
        r"Error parsing (\S+): no type matching \{None\}\|(INT|FLOAT) could .*? \['(.*?)'\]", text
    )
    found = optional or single
    if found is None:
        return None
    option, kind, value = found.groups()
    number = "a whole number" if kind.lower() == "int" else "a number"
    return f"command line: {option} {value}: give {number}{' or None' if optional else ''}"


def _unknown_option(cls: type[BaseModel], option: str) -> str:
    if not option.startswith("-"):
        return f"command line: {option!r} belongs to no option; options look like --optim.lr 3e-3"
    known = list(_option_names(cls, "--"))
    name = option.partition("=")[0]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    # A bare last name (`--lr`) is closer to the option that ends in it than letters tell.
    near = [k for k in known if k.endswith("." + name.lstrip("-"))][:1] or near
    hint = f"did you mean {near[0]}?" if near else "--help lists the options"
    return f"command line: unknown option {option}; {hint}"


def _option_names(cls: type[BaseModel], prefix: str) -> Iterator[str]:
    for field in cls.model_fields:
        dashed = field.replace("_", "-")
        section = section_class(cls, field)
        if section is None:
            yield f"{prefix}{dashed}"
        else:
            yield from _option_names(section, f"{prefix}{dashed}.")
