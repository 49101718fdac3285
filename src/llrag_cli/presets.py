"""Bundled presets and preset files as configurations, with single settings changed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from llrag_cli.config import ModelShape, RunConfig
from llrag_cli.errors import UsageError, closest
from llrag_cli.files.settings import apply_setting, parse_setting, read_yaml, setting_names, validate
from llrag_cli.memory.own import load_rule, named_rule
from llrag_cli.memory.strategies import STRATEGIES, RetrievalMemory, fields_for


def presets_folder() -> Path:
    """The bundled presets: in the installed package, or at the top of a source checkout."""
    packaged = Path(__file__).parent / "presets"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "presets"


def preset_names() -> list[str]:
    """Names of the bundled presets, those of the embedded model first."""
    names = sorted(path.stem for path in presets_folder().glob("*.yaml"))
    return sorted(names, key=lambda name: not name.startswith("tiny"))


def load_config(source: str | Path = "tiny", *, memory: str | None = None, settings: Iterable[str] = ()) -> RunConfig:
    """A bundled preset by name, or a YAML file, with another memory strategy and ``KEY=VALUE`` settings applied.

    With another strategy the preset's memory parameters stay, as far as that strategy has them. A rule of your own is
    named ``package.module:function``, and is imported. Raises ``UsageError`` for an unknown preset, strategy, key or
    value.
    """
    path = _locate(source)
    content, lines = read_yaml(path)
    content["name"] = path.stem
    config = _validate(content, f"`{path.name}`", lines)  # the file first, so that its errors carry its lines
    return with_settings(config, settings, memory=memory)


def with_settings(config: RunConfig, settings: Iterable[str] = (), *, memory: str | None = None) -> RunConfig:
    """A configuration with another memory strategy and ``KEY=VALUE`` settings applied, as ``load_config``."""
    names = config_settings()
    parsed = [parse_setting(setting, names, example="memory.retrieved=4") for setting in settings]
    strategy = next((value for name, value in reversed(parsed) if name == "memory.strategy"), memory)
    if strategy is None and not parsed:
        return config
    parsed = [(name, value) for name, value in parsed if name != "memory.strategy"]
    if isinstance(strategy, str) and (rule := named_rule(strategy)) is not None:
        strategy, parsed = "own", [("memory.rule", rule), *parsed]
    content = config.model_dump(mode="json", exclude_unset=True)
    if strategy is not None:
        require_strategy(strategy)
        content["memory"] = fields_for(config.memory.model_dump(mode="json"), strategy)
    for name, value in parsed:
        apply_setting(content, name, value)
    rule = next((value for name, value in reversed(parsed) if name == "memory.rule"), None)
    if isinstance(rule, str) and content.get("memory", {}).get("strategy") == "own" and named_rule(rule):
        load_rule(rule)
    return _validate(content, "settings", {})


def size_settings(config: RunConfig, width: int, height: int, *, keys_chosen: bool = False) -> list[str]:
    """The settings of another size of the picture in pixels, as ``KEY=VALUE``; none if it is the configuration's own.

    A retrieval encoder takes frames of one size only: unless keys are chosen otherwise, frames of another size are
    compared by average pooling. Raises ``UsageError`` for a size that the model does not have.
    """
    step = config.latent_space.spatial_ratio * config.latent_space.patch_size
    if width <= 0 or height <= 0 or width % step or height % step:
        raise UsageError(
            f"`{config.name}` has no pictures of {width}x{height} pixels",
            hint=f"width and height are multiples of {step} pixels, for example {config.width}x{config.height}",
        )
    if (width, height) == (config.width, config.height):
        return []
    changes = [
        f"backbone.height={height // config.latent_space.spatial_ratio}",
        f"backbone.width={width // config.latent_space.spatial_ratio}",
    ]
    memory = config.memory
    if isinstance(memory, RetrievalMemory) and memory.keys == "encoder" and not keys_chosen:
        changes.append("memory.keys=average")
    return changes


def require_strategy(name: object) -> None:
    """Raise ``UsageError`` unless there is a memory strategy of that name, or a rule from outside the package."""
    if name not in STRATEGIES and (not isinstance(name, str) or named_rule(name) is None):
        raise UsageError(f"unknown memory strategy `{name}`", hint=closest(str(name), STRATEGIES))


def config_settings() -> list[str]:
    """The dotted names of all settings, those of every memory strategy included."""
    fields = dict.fromkeys(name for strategy in STRATEGIES.values() for name in strategy.model_fields)
    names = [name for name in setting_names(RunConfig) if name not in ("name", "about", "checked", "memory")]
    return [*names, *(f"memory.{name}" for name in fields)]


def load_shape(path: Path) -> ModelShape:
    """Sizes of a model from a YAML file, or from the ``transformer/config.json`` of one in Diffusers format."""
    content, lines = read_yaml(path)
    return validate(ModelShape, content, source=f"`{path.name}`", lines=lines, names=setting_names(ModelShape))


def _locate(source: str | Path) -> Path:
    text = str(source)
    if text.endswith((".yaml", ".yml")) or "/" in text:
        return Path(source)
    if text not in preset_names():
        raise UsageError(f"unknown preset `{text}`", hint=closest(text, preset_names()))
    return presets_folder() / f"{text}.yaml"


def _validate(content: dict[str, Any], source: str, lines: dict[str, int]) -> RunConfig:
    return validate(RunConfig, content, source=source, lines=lines, names=config_settings(), tagged=STRATEGIES)
