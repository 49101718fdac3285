"""YAML to configuration: bundled presets, preset files and single settings, with errors that name key and line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from llrag_cli.config import RECALLS, TIERS, ModelShape, RunConfig
from llrag_cli.errors import UsageError, closest
from llrag_cli.training.encoder.config import EncoderTraining

Model = TypeVar("Model", bound=BaseModel)
Method = Literal["native", "retrieval"]
METHODS: tuple[Method, Method] = ("native", "retrieval")


def presets_folder() -> Path:
    """Where the bundled presets lie: in the installed package, or at the top of a source checkout."""
    packaged = Path(__file__).parent / "presets"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "presets"


def preset_names() -> list[str]:
    """Names of the bundled presets, the embedded model first."""
    names = sorted(path.stem for path in presets_folder().glob("*.yaml"))
    return sorted(names, key=lambda name: name != "tiny")


def load_config(preset: str | Path, *, method: Method, settings: Iterable[str] = ()) -> RunConfig:
    """A bundled preset by name, or a file by path, resolved for a method, with ``KEY=VALUE`` settings applied.

    Raises ``UsageError`` for an unknown preset, key, method or value.
    """
    path = _locate(preset)
    content, lines = _read(path)
    methods = content.pop("methods", {})
    if not isinstance(methods, dict) or method not in methods:
        raise UsageError(
            f"`{path.name}` has no method `{method}` under `methods`",
            hint=closest(method, METHODS),
        )
    content |= {"name": path.stem, "method": method, "memory": methods[method]}
    prefixes = {"memory": f"methods.{method}"}
    settings = tuple(settings)
    _validate(RunConfig, content, path, lines, prefixes)  # the file first, so that its errors carry its lines
    for setting in settings:
        _apply(content, setting, [name for name in setting_names(RunConfig) if name not in ("name", "method", "about")])
    return _validate(RunConfig, content, path, lines, prefixes, set_by_hand=bool(settings))


def with_settings(config: RunConfig, settings: Iterable[str]) -> RunConfig:
    """A configuration with ``KEY=VALUE`` settings changed."""
    content = config.model_dump(mode="json")
    for setting in settings:
        _apply(content, setting, [name for name in setting_names(RunConfig) if name not in ("name", "method", "about")])
    return _validate(RunConfig, content, Path(config.name), {}, {}, set_by_hand=True)


def load_training(preset: str | Path, *, settings: Iterable[str] = ()) -> EncoderTraining:
    """How to train an encoder: a bundled preset (``wan``, ``tiny``) or a file, with settings applied."""
    names = sorted(path.stem for path in (presets_folder() / "encoder").glob("*.yaml"))
    path = Path(preset)
    if path.suffix not in (".yaml", ".yml"):
        if str(preset) not in names:
            raise UsageError(f"there is no training preset `{preset}`", hint=closest(str(preset), names))
        path = presets_folder() / "encoder" / f"{preset}.yaml"
    content, lines = _read(path)
    settings = tuple(settings)
    _validate(EncoderTraining, content, path, lines, {})
    for setting in settings:
        _apply(content, setting, setting_names(EncoderTraining))
    return _validate(EncoderTraining, content, path, lines, {}, set_by_hand=bool(settings))


def load_shape(path: Path) -> ModelShape:
    """Sizes of a model from a YAML file, or from the ``transformer/config.json`` of one in Diffusers format."""
    if not path.is_file():
        raise UsageError(f"there is no file `{path}`", hint="`--config` names a YAML or JSON file of sizes")
    content, lines = _read(path)
    return _validate(ModelShape, content, path, lines, {})


def asked_for(*, backbone: str | None, preset: Path | None) -> Path | str | None:
    """What ``load_config`` takes for ``--backbone`` and ``--preset``, of which at most one may be given."""
    if backbone is not None and preset is not None:
        raise UsageError("`--backbone` and `--preset` both name a preset", hint="give one of them")
    if preset is not None:
        return preset if preset.suffix in (".yaml", ".yml") else str(preset)
    return backbone


def memory_settings(method: Method, *, recall: str | None, encoder: Path | None) -> list[str]:
    """What ``load_config`` takes as settings for ``--memory`` and ``--encoder``."""
    for option, given in (("--memory", recall), ("--encoder", encoder)):
        if given is not None and method == "native":
            raise UsageError(
                f"`{option}` says what is recalled, but without retrieval nothing is",
                hint=f"add `--rag`, or leave `{option}` out",
            )
    settings = []
    if recall is not None:
        if recall not in RECALLS:
            raise UsageError(f"there is no memory policy `{recall}`", hint=closest(recall, RECALLS))
        settings.append(f"memory.recall={recall}")
    if encoder is not None:
        if not encoder.is_file():
            raise UsageError(f"there is no file `{encoder}`", hint="`llrag train-encoder` makes one")
        settings += ["memory.keys=encoder", f"memory.encoder={json.dumps(str(encoder.resolve()))}"]
    return settings


def archive_settings(method: Method, *, archive: str | None) -> list[str]:
    """What ``load_config`` takes as settings for ``--archive``."""
    if archive is None:
        return []
    if method == "native":
        raise UsageError(
            "`--archive` says where frames to recall are kept, but without retrieval nothing is recalled",
            hint="add `--rag`, or leave `--archive` out",
        )
    tiers = ("auto", *TIERS)
    if archive not in tiers:
        raise UsageError(f"there is no archive `{archive}`", hint=closest(archive, tiers))
    return [f"memory.archive={archive}"]


def _locate(preset: str | Path) -> Path:
    text = str(preset)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return Path(preset)
    if text not in preset_names():
        raise UsageError(f"there is no preset `{text}`", hint=closest(text, preset_names()))
    return presets_folder() / f"{text}.yaml"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The content of a preset file, and the line of each dotted key."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise UsageError(f"there is no preset file `{path}`", hint="`llrag presets` lists the bundled ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"`{path}` cannot be read: {error}", hint="a preset is a YAML text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it is no YAML"
        raise UsageError(f"`{path}` is not valid YAML{where}: {problem}", hint="mend that line") from None
    if not isinstance(content, dict) or not isinstance(tree, yaml.MappingNode):
        raise UsageError(f"`{path}` holds no mapping of keys to values", hint="see `llrag presets show tiny`")
    return content, dict(_lines(tree, ""))


def _lines(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, int]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        yield name, key.start_mark.line + 1
        if isinstance(value, yaml.MappingNode):
            yield from _lines(value, f"{name}.")


def _apply(content: dict[str, Any], setting: str, valid: Sequence[str]) -> None:
    """Write one ``memory.retrieved=4`` into the raw configuration."""
    example = "memory.retrieved=4" if "memory.retrieved" in valid else "epochs=100"
    path, equals, text = setting.partition("=")
    if not equals or not path.strip():
        raise UsageError(f"`--set {setting}` is not KEY=VALUE", hint=f"for example `--set {example}`")
    parts = path.strip().split(".")
    if path.strip() not in valid:
        raise UsageError(f"there is no setting `{path.strip()}`", hint=closest(path.strip(), valid))
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(f"`{text}` is no value for `{path}`", hint="values are written as in YAML") from None
    place = content
    for part in parts[:-1]:
        place[part] = dict(place.get(part) or {})
        place = place[part]
    place[parts[-1]] = value


def setting_names(model: type[BaseModel], prefix: str = "") -> list[str]:
    """The dotted names of all single settings."""
    names = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += setting_names(kind, f"{prefix}{name}.")
        else:
            names.append(f"{prefix}{name}")
    return names


def _validate(
    model: type[Model],
    content: dict[str, Any],
    path: Path,
    lines: dict[str, int],
    prefixes: dict[str, str],
    *,
    set_by_hand: bool = False,
) -> Model:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = [str(part) for part in first["loc"] if not isinstance(part, int)]
        dotted = ".".join(place)
        in_file = ".".join([prefixes.get(place[0], place[0]), *place[1:]]) if place else ""
        where = "the settings" if set_by_hand else f"`{path.name}`"
        if not set_by_hand and in_file in lines:
            where += f", line {lines[in_file]}"
        if first["type"] == "extra_forbidden":
            siblings = [
                name.split(".")[len(place) - 1] for name in setting_names(model) if name.split(".")[:-1] == place[:-1]
            ]
            raise UsageError(f"{where}: unknown key `{in_file}`", hint=closest(place[-1], set(siblings))) from None
        message = first["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        subject = f"`{dotted}`: " if dotted else ""
        given = f", not `{first['input']}`" if isinstance(first["input"], str | int | float) else ""
        hint = "`llrag presets show tiny` prints every setting and its value"
        if model is not RunConfig:
            hint = f"its settings are {', '.join(f'`{name}`' for name in setting_names(model))}"
        raise UsageError(f"{where}: {subject}{message}{given}", hint=hint) from None
