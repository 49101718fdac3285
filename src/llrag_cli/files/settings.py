"""YAML to settings: strict models, errors that name key and line, and single ``KEY=VALUE`` changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from llrag_cli.errors import UsageError, closest

Model = TypeVar("Model", bound=BaseModel)


class Config(BaseModel):
    """Base of all configuration: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in a YAML file, and the line of each dotted key."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise UsageError(f"no such file: `{path}`", hint="name a bundled preset, or a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{path}` cannot be read: {error}", hint="expected a YAML text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "syntax error"
        raise UsageError(f"`{path}` is not valid YAML{where}: {problem}", hint="correct that line") from None
    if not isinstance(content, dict) or not isinstance(tree, yaml.MappingNode):
        raise UsageError(f"`{path}` is not a mapping of keys to values", hint="expected lines of the form `key: value`")
    return content, dict(_lines(tree, ""))


def _lines(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, int]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from _lines(value, f"{name}.")


def parse_setting(setting: str, valid: Sequence[str], *, example: str) -> tuple[str, Any]:
    """``memory.retrieved=4`` as its dotted name, which must be in ``valid``, and its value, read as YAML."""
    name, equals, text = (part.strip() for part in setting.partition("="))
    if not equals or not name:
        raise UsageError(f"`{setting}` is not KEY=VALUE", hint=f"for example `{example}`")
    if name not in valid:
        raise UsageError(f"unknown setting `{name}`", hint=closest(name, valid))
    try:
        return name, yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        raise UsageError(f"`{text}` is not a valid value for `{name}`", hint="values are written as in YAML") from None


def apply_setting(content: dict[str, Any], name: str, value: Any) -> None:
    """Write a value under its dotted name."""
    *sections, last = name.split(".")
    for section in sections:
        content[section] = dict(content.get(section) or {})
        content = content[section]
    content[last] = value


def setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all single settings of a model."""
    names = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += setting_names(kind, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


def validate(
    model: type[Model],
    content: dict[str, Any],
    *,
    source: str,
    lines: dict[str, int],
    names: Iterable[str],
    tagged: Mapping[str, type[BaseModel]] | None = None,
) -> Model:
    """A model from raw content; the first problem becomes a ``UsageError`` with key and, where known, line.

    ``names`` are the dotted names of all valid settings, for hints; ``tagged`` are the members of a discriminated
    union by tag.
    """
    tagged = tagged or {}
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        keys = [str(part) for part in first["loc"] if not isinstance(part, int) and part not in tagged]
        dotted = ".".join(keys)
        where = f"{source}, line {lines[dotted]}" if dotted in lines else source
        tag = next((part for part in first["loc"] if part in tagged), None)
        if first["type"] == "extra_forbidden" and tag is not None:
            problem = f"{where}: `{tag}` has no `{dotted}`"
            raise UsageError(problem, hint=closest(keys[-1], tagged[str(tag)].model_fields)) from None
        if first["type"].startswith("union_tag"):
            problem = f"{where}: `{dotted}` names none of {', '.join(f'`{name}`' for name in tagged)}"
            key = str(first["ctx"]["discriminator"]).strip("'")
            raise UsageError(problem, hint=f"set `{dotted}.{key}`") from None
        if first["type"] == "extra_forbidden":
            siblings = {name.split(".")[len(keys) - 1] for name in names if name.split(".")[:-1] == keys[:-1]}
            raise UsageError(f"{where}: unknown key `{dotted}`", hint=closest(keys[-1], siblings)) from None
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        subject = f"`{dotted}`: " if dotted else ""
        given = f", not `{first['input']}`" if isinstance(first["input"], str | int | float) else ""
        raise UsageError(f"{where}: {subject}{message}{given}", hint="see the documentation of the settings") from None
