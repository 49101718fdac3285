"""How well the embedded model follows prompts: ``python -m llrag_cli.training.embedded.evaluate``.

Prompts name combinations of colour, shape and wall that were held out of all training. Videos are generated as by
``llrag generate``, written to mp4, read back, and judged by ``world/checker.py``.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.presets import load_config
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.maker import make_video
from llrag_cli.runs.video import read_video
from llrag_cli.world.checker import Verdict, judge, share
from llrag_cli.world.sprites import Scene, drawn_scenes, prompt

NAMES = {
    "wall": "the wall has the prompted colour",
    "color": "an object of a prompted colour is visible",
    "all_colors": "all prompted colours are visible",
    "shape": "most sightings of prompted colours show the right shape",
    "share_visible": "share of frames that show a prompted object",
    "kept": "of the prompted objects are there with their shape over the whole video",
}


def evaluate(pipeline: Pipeline, scenes: list[Scene], out: Path, *, seconds: float, seed: int) -> list[Verdict]:
    """Generate, read back and judge one video per scene; run folders are kept in ``out``."""
    verdicts = []
    for number, scene in enumerate(scenes, start=1):
        folder = RunFolder(out / f"{number:03d}")
        make_video(pipeline, prompt(scene), folder, seconds=seconds, seed=seed + number, existing="replace")
        verdicts.append(judge(read_video(folder.video), scene))
    return verdicts


def main(
    count: Annotated[int, typer.Option(min=1, help="Prompts")] = 40,
    seconds: Annotated[float, typer.Option(min=0.5, help="Length of each video")] = 5.0,
    seed: Annotated[int, typer.Option(help="Seed of the first video")] = 0,
    rag: Annotated[bool, typer.Option("--rag/--no-rag")] = True,
    unseen: Annotated[bool, typer.Option("--unseen/--seen", help="Held out of training, or used in it")] = True,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    objects: Annotated[int | None, typer.Option(min=1, max=4, help="Objects of each prompt; default: mixed")] = None,
    backbone: Annotated[str, typer.Option(help="Preset of the embedded family")] = "tiny",
    weights: Annotated[Path | None, typer.Option(help="Weights in place of the preset's")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the run folders here")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every verdict as JSON")] = False,
) -> None:
    """Generate videos of prompts and print how often they show what was prompted."""
    named = [] if weights is None else [f"backbone.weights={weights.absolute()}"]
    config = load_config(backbone, memory=None if rag else "none", settings=[*named, *(settings or ())])
    pipeline = Pipeline.load(config, device="cpu")
    scenes = drawn_scenes(count, unseen=unseen, objects=objects)
    with tempfile.TemporaryDirectory() as scratch:
        verdicts = evaluate(pipeline, scenes, out or Path(scratch), seconds=seconds, seed=seed)
    if as_json:
        rows = [{"prompt": prompt(scene), **asdict(verdict)} for scene, verdict in zip(scenes, verdicts, strict=True)]
        typer.echo(json.dumps(rows, indent=1))
        return
    kind = "held out of" if unseen else "in"
    typer.echo(f"{count} prompts, combinations {kind} training, {seconds:g} s each, {config.memory.strategy}")
    for name, meaning in NAMES.items():
        typer.echo(f"  {100 * share(verdicts, name):5.1f} %  {meaning}")


if __name__ == "__main__":
    typer.run(main)
