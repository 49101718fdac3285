"""``llrag scene``: check a scene file, print its schema, begin a new one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llrag_cli.cli.options import BackboneName, Json, Memory, Set, configuration

if TYPE_CHECKING:
    from llrag_cli.config import RunConfig
    from llrag_cli.scenes.schema import Scene
    from llrag_cli.scenes.timeline import ShotSpan, Timeline

scene_app = typer.Typer(help="Check scene files, begin a new one, print their JSON schema.", no_args_is_help=True)


@scene_app.command("new")
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Scene file to write")] = Path("scene.yaml"),
) -> None:
    """Write a commented example that runs on the embedded model."""
    from llrag_cli.cli import console
    from llrag_cli.errors import UsageError, WriteFailedError
    from llrag_cli.files.durable import replace_text
    from llrag_cli.scenes.example import example_scene

    if file.exists() or file.is_symlink():
        raise UsageError(f"`{file}` already exists", hint="choose another name")
    try:
        replace_text(file, example_scene())
    except WriteFailedError as error:
        raise UsageError(error.problem, hint="choose another folder") from error
    console.result(str(file))
    console.note(f"`llrag generate --scene {shlex.quote(str(file))}` generates it")


@scene_app.command("schema")
def schema() -> None:
    """Print the JSON schema of scene files, with which editors complete and check them.

    For the YAML extension of VS Code: save it as scene.schema.json and begin
    the scene file with `# yaml-language-server: $schema=scene.schema.json`.
    """
    from llrag_cli.cli import console
    from llrag_cli.scenes.schema import scene_json_schema

    console.result_json(scene_json_schema())


@scene_app.command("check")
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Scene file, or a time line of another program")],
    backbone: BackboneName = None,
    memory: Memory = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Check a scene and print its timeline, without loading a model.

    For each shot: its blocks, exact frames and times, what it can retrieve
    from, and how large the video's memory will be.
    """
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.cli.prompts import require_understood, show_readings
    from llrag_cli.cli.scenes import planned, scene_configuration
    from llrag_cli.formatting import human
    from llrag_cli.scenes.needs import memory_needs
    from llrag_cli.scenes.reading import read_scenes

    results = []
    scenes = read_scenes(file)
    for number, scene in enumerate(scenes, start=1):
        name, strategy, changes = scene_configuration(scene, backbone, memory, settings or ())
        config = configuration(name, memory=strategy, settings=changes)
        timeline = planned(scene, config, file=file)
        require_understood(config, timeline.prompts)
        needs = memory_needs(config, timeline, takes=scene.takes)
        if as_json:
            results.append(content_of(scene, config, timeline, needs))
            continue
        title = scene.title or (f"{file} {number}" if len(scenes) > 1 else str(file))
        console.result(f"{title}: {config.label}, {timeline.video_frames} frames, {timeline.seconds:.2f} s")
        table = Table(
            "shot", "begins", "blocks", "frames", "seconds", "sink", "retrieves from", box=None, pad_edge=False
        )
        for shot in timeline.shots:
            extent = timeline.extent(shot)
            frames = f"{extent.video_frames[0]}-{extent.video_frames[-1]}"
            seconds = f"{extent.start_seconds:.2f}-{extent.end_seconds:.2f}"
            table.add_row(
                shot.name, opening_of(shot), f"{shot.start}-{shot.stop - 1}", frames, seconds, shot.sink,
                retrieves_from(config, timeline, shot),
            )  # fmt: skip
        console.result_table(table)
        for reference, span in timeline.reference_frames.items():
            pinned = ", pinned" if any(each.name == reference and each.pinned for each in timeline.references) else ""
            console.result(f"reference {reference}: {len(span)} latent frames{pinned}")
        console.result("; ".join(f"{what} {human(size)}" for what, size in needs.items()))
        show_readings(config, timeline.prompts)
    if as_json:
        console.result_json(results[0] if len(results) == 1 else results)


def opening_of(shot: ShotSpan) -> str:
    """How a shot begins, in a word, and with what file."""
    source = shot.image or shot.video
    if source is None:
        return shot.kind
    return f"{shot.kind}, {shot.given_blocks} blocks of {source.name}"


def retrieves_from(config: RunConfig, timeline: Timeline, shot: ShotSpan) -> str:
    """What the blocks of a shot can retrieve from besides the shot itself."""
    if not config.memory.retrieves:
        return f"nothing (strategy `{config.memory.strategy}`)"
    names = [name for name in timeline.eligible(shot.start) if name != shot.name]
    return ", ".join(names) or "itself"


def content_of(scene: Scene, config: RunConfig, timeline: Timeline, needs: dict[str, int]) -> dict[str, Any]:
    """The result as JSON."""
    shots = []
    for shot in timeline.shots:
        extent = timeline.extent(shot)
        shots.append(
            {
                "name": shot.name,
                "prompt": shot.prompt,
                "begins": shot.kind,
                "blocks": [shot.start, shot.stop],
                "latent_frames": [extent.latent_frames.start, extent.latent_frames.stop],
                "video_frames": [extent.video_frames.start, extent.video_frames.stop],
                "seconds": [extent.start_seconds, extent.end_seconds],
                "given_blocks": shot.given_blocks,
                "sink": shot.sink,
                "retrieves_from": list(timeline.eligible(shot.start)) if config.memory.retrieves else [],
                "pinned": len(timeline.pinned_for(shot)),
            }
        )
    references = [reference.model_dump(mode="json") for reference in timeline.references]
    return {
        "title": scene.title,
        "backbone": config.name,
        "memory": config.memory.strategy,
        "blocks": timeline.blocks,
        "video_frames": timeline.video_frames,
        "fps": timeline.fps,
        "seconds": timeline.seconds,
        "shots": shots,
        "references": references,
        "bytes": needs,
    }
