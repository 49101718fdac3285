"""``llrag presets``: what there is."""

from __future__ import annotations

import yaml
from rich.table import Table

from llrag_cli.cli import console
from llrag_cli.presets import METHODS, Method, load_config, preset_names


def list_presets(*, as_json: bool) -> None:
    """One line a configuration: preset and method."""
    configs = [load_config(name, method=method) for name in preset_names() for method in METHODS]
    if as_json:
        console.result_json([config.model_dump(mode="json") for config in configs])
        return
    table = Table("preset", "method", "window", "sink", "K", "R", "keys", "video", "about", box=None, pad_edge=False)
    for config in configs:
        memory, backbone = config.memory, config.backbone
        recalls = memory.policy == "retrieval"
        table.add_row(
            config.name,
            config.method,
            str(memory.window),
            str(memory.sink),
            str(memory.retrieved) if recalls else "-",
            str(memory.guard) if recalls else "-",
            memory.keys if recalls else "-",
            f"{config.width}x{config.height}, {backbone.fps} fps",
            config.about,
        )
    console.result_table(table)


def show(name: str, *, method: Method, settings: tuple[str, ...], as_json: bool) -> None:
    """Every setting of one configuration: as a preset file that `--preset` reads, or as JSON."""
    config = load_config(name, method=method, settings=settings).model_dump(mode="json")
    if as_json:
        console.result_json(config)
        return
    preset = {key: config[key] for key in ("about", "backbone", "sampler", "video")}
    preset["methods"] = {method: config["memory"]}
    console.result(yaml.safe_dump(preset, sort_keys=False).rstrip())
