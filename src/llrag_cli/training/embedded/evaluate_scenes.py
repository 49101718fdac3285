"""How well the embedded model follows a switch: ``python -m llrag_cli.training.embedded.evaluate_scenes``.

A scene of held-out combinations plays for 4 s, then the prompt names another one for 6 s, without a cut. The last 3 s
are judged by ``world/checker.py``. Cuts and returns are measured by ``llrag bench leave-and-return``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer

from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.presets import load_config
from llrag_cli.scenes.schema import Scene as Shots
from llrag_cli.world.checker import judge
from llrag_cli.world.sprites import FPS, Scene, drawn_scenes, prompt

JUDGED = 3 * FPS  # frames at the end
NAMES = {
    "wall": "the wall has the new colour",
    "all_colors": "all new colours are visible",
    "shape": "most sightings of new colours show the right shape",
    "stays": "a colour of the old prompt alone is visible",
}


@dataclass(frozen=True)
class Followed:
    """What the end of a video shows after its prompt changed from one scene to another."""

    before: str
    after: str
    wall: bool
    all_colors: bool
    shape: bool
    stays: bool


def follow(pipeline: Pipeline, before: Scene, after: Scene, *, seed: int) -> Followed:
    """Generate a switch and judge its end."""
    shots = [{"prompt": prompt(before), "seconds": 4.0}, {"prompt": prompt(after), "seconds": 6.0}]
    session = pipeline.start(Shots.model_validate({"shots": shots}), seed=seed)
    frames = torch.cat([block.frames for block in session], dim=1)[0, -JUDGED:]
    verdict = judge((frames + 1) / 2, after)
    new = {sprite.color for sprite in after.sprites}
    old = tuple(sprite for sprite in before.sprites if sprite.color not in new)
    left = Scene(old, after.wall, after.pattern, after.motion)
    stays = bool(old) and judge((frames + 1) / 2, left).color
    return Followed(prompt(before), prompt(after), verdict.wall, verdict.all_colors, verdict.shape, stays)


def main(
    count: Annotated[int, typer.Option(min=1, help="Switches")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the first video")] = 0,
    backbone: Annotated[str, typer.Option(help="Preset of the embedded family")] = "tiny",
    as_json: Annotated[bool, typer.Option("--json", help="Print every row as JSON")] = False,  # noqa: FBT002
) -> None:
    """Generate switches of the prompt and print how often the video follows."""
    pipeline = Pipeline.load(load_config(backbone), device="cpu")
    scenes = [scene for scene in drawn_scenes(6 * count, seed=77) if scene.motion != "pan"][: 2 * count]
    pairs = zip(scenes[::2], scenes[1::2], strict=True)
    rows = [follow(pipeline, one, other, seed=seed + number) for number, (one, other) in enumerate(pairs)]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=1))
        return
    typer.echo(f"{len(rows)} switches between held-out scenes, the last {JUDGED} frames of 6 s")
    for name, meaning in NAMES.items():
        typer.echo(f"  {100 * sum(getattr(row, name) for row in rows) / len(rows):5.1f} %  {meaning}")


if __name__ == "__main__":
    typer.run(main)
