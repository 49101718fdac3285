"""YAML to settings: strict models, errors that name key and line, and single ``KEY=VALUE`` changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import InitErrorDetails

from llrag_cli.errors import UsageError, closest
from llrag_cli.files.guarded import shortened
from llrag_cli.files.yaml_lines import parse_yaml, parse_yaml_value, read_text

Model = TypeVar("Model", bound=BaseModel)


class Config(BaseModel):
    """Base of all configuration: immutable and finite, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def require_kinds(model: type[BaseModel], content: Any) -> None:
    """Raise pydantic's ValidationError for a flag that is given as a number, or a number as a flag.

    Pydantic takes `true` for 1, and 1.0 for `true`. This is no validator of the models, because then they could not be
    validated strictly as JSON.
    """
    if wrong := list(_mistakes(model, content, ())):
        raise ValidationError.from_exception_data(model.__name__, wrong)


def _mistakes(model: type[BaseModel], content: Any, location: tuple[str | int, ...]) -> Iterator[InitErrorDetails]:
    if not isinstance(content, dict):
        return
    for name, field in model.model_fields.items():
        value = content.get(name)
        if (kind := _mistaken(value, _kinds(field.annotation))) is not None:
            yield InitErrorDetails(type=kind, loc=(*location, name), input=value)
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for each in _models(field.annotation):
            yield from _mistakes(each, value, (*location, name))
            for key, item in inner:
                yield from _mistakes(each, item, (*location, name, key))


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _mistaken(value: Any, kinds: set[Any]) -> str | None:
    """The type of pydantic's error for a flag that is given as a number, or a number as a flag."""
    values = value if isinstance(value, list | tuple) else (value,)
    if bool not in kinds and any(isinstance(each, bool) for each in values):
        return "int_type" if int in kinds else "float_type" if float in kinds else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "bool_type" if kinds == {bool} and is_number else None


def _kinds(annotation: Any) -> set[Any]:
    """Flag and number types that an annotation is made of: that of ``tuple[int, ...] | None`` is int."""
    found = {kind for kind in (bool, int, float) if annotation is kind}
    return found.union(*(_kinds(part) for part in get_args(annotation)))


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in a YAML file, and the line of each dotted key."""
    if not path.exists() and not path.is_symlink():
        raise UsageError(f"no such file: `{path}`", hint="name a bundled preset, or a YAML file")
    document = parse_yaml(read_text(path, kind="YAML file"), name=path.name)
    if not isinstance(document.content, dict):
        raise UsageError(f"`{path}` is not a mapping of keys to values", hint="expected lines of the form `key: value`")
    return document.content, {".".join(map(str, location)): line for location, line in document.lines.items()}


def parse_setting(setting: str, valid: Sequence[str], *, example: str) -> tuple[str, Any]:
    """``memory.retrieved=4`` as its dotted name, which must be in ``valid``, and its value, read as YAML."""
    name, equals, text = (part.strip() for part in setting.partition("="))
    if not equals or not name:
        raise UsageError(f"`{shortened(setting)}` is not KEY=VALUE", hint=f"for example `{example}`")
    if name not in valid:
        raise UsageError(f"unknown setting `{shortened(name)}`", hint=closest(name[:80], valid))
    try:
        return name, parse_yaml_value(text)
    except UsageError:
        problem = f"`{shortened(text)}` is not a valid value for `{name}`"
        raise UsageError(problem, hint="values are written as in YAML") from None


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
        require_kinds(model, content)
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
        message = shortened(first["msg"].removeprefix("Value error, "), 400)
        message = message[0].lower() + message[1:]
        subject = f"`{dotted}`: " if dotted else ""
        given = f", not `{shortened(first['input'])}`" if isinstance(first["input"], str | int | float) else ""
        raise UsageError(f"{where}: {subject}{message}{given}", hint="see the documentation of the settings") from None
