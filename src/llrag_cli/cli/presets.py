"""``llrag presets``: bundled presets, their settings, and the memory strategies."""

from __future__ import annotations

from typing import Annotated

import typer

from llrag_cli.cli.options import Encoder, Json, Memory, Rag, Set, configuration

presets_app = typer.Typer(
    help="List the bundled presets, show one, or list the memory strategies.", invoke_without_command=True
)


@presets_app.callback()
def presets(context: typer.Context, as_json: Json = False) -> None:
    """List the bundled presets, show one, or list the memory strategies."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.memory.strategies import RetrievalMemory
    from llrag_cli.presets import load_config, preset_names

    configs = [load_config(name) for name in preset_names()]
    if as_json:
        console.result_json([config.model_dump(mode="json") for config in configs])
        return
    table = Table("preset", "memory", "window", "sink", "K", "R", "keys", "video", "about", box=None, pad_edge=False)
    for config in configs:
        memory, fps = config.memory, config.backbone.fps
        retrieval = ["-"] * 3
        if isinstance(memory, RetrievalMemory):
            retrieval = [str(memory.retrieved), str(memory.guard), memory.keys]
        video = f"{config.width}x{config.height}, {fps} fps"
        window = [memory.strategy, str(memory.window), str(memory.sink)]
        table.add_row(config.name, *window, *retrieval, video, config.about)
    console.result_table(table)
    console.result("\nchecked:")
    for checked in dict.fromkeys(config.checked for config in configs):
        names = ", ".join(config.name for config in configs if config.checked == checked)
        console.result(f"  {names}: {checked}")


@presets_app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="A bundled preset, or a YAML file")],
    rag: Rag = None,
    memory: Memory = None,
    encoder: Encoder = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Print every setting of one preset, as a file that --backbone reads, and what it can draw."""
    import yaml

    from llrag_cli.cli import console
    from llrag_cli.models.family import family_of

    config = configuration(name, rag=rag, memory=memory, encoder=encoder, settings=settings or ())
    content = config.model_dump(mode="json")
    if as_json:
        console.result_json(content)
        return
    del content["name"]
    console.result(yaml.safe_dump(content, sort_keys=False).rstrip())
    for line in family_of(config).vocabulary():
        console.result(f"# {line}")


@presets_app.command("strategies")
def strategies(as_json: Json = False) -> None:
    """List the memory strategies and their own parameters."""
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.memory.strategies import STRATEGIES, MemoryConfig, RetrievalMemory

    shared = {*MemoryConfig.model_fields, *RetrievalMemory.model_fields}
    rows: list[tuple[str, str, dict[str, str]]] = []
    for name, strategy in STRATEGIES.items():
        about = (strategy.__doc__ or "").strip().splitlines()[0]
        own = {field: info for field, info in strategy.model_fields.items() if field not in shared}
        parameters = {field: f"{info.description} (default {info.default})" for field, info in own.items()}
        rows.append((name, about, parameters))
    if as_json:
        keys = ("strategy", "about", "parameters")
        console.result_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    table = Table("strategy", "attends to", box=None, pad_edge=False)
    for name, about, parameters in rows:
        table.add_row(name, about)
        for field, text in parameters.items():
            table.add_row("", f"memory.{field}: {text}")
    console.result_table(table)
