"""How well the embedded model follows scenes: ``python -m llrag_cli.training.embedded.evaluate_scenes``.

Scenes are combinations held out of all training. Three things are measured, with ``world/checker.py``:

- *switch*: the prompt changes in a running video; share of the new scene that is visible in the 3 s that follow, and
  of the old objects that wrongly stay.
- *return*: A under its full prompt, B elsewhere, then a cut to a vague prompt that names nothing, with frames of A
  retrieved, of B (the wrong ones), or none; share of A that returns.
- *new*: the same, but the last prompt names a third scene in full, which is what should be seen.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor

from llrag_cli.cache.context import Context
from llrag_cli.cache.kv import WanKVCache
from llrag_cli.engine.pipeline import Pipeline, schedule_of
from llrag_cli.engine.rollout import denoise, rollout
from llrag_cli.memory.candidates import cosine_similarities, top
from llrag_cli.memory.context import context_of
from llrag_cli.memory.history import History
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.wan.transformer import WanSession
from llrag_cli.presets import load_config
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.training.embedded.scene_clips import Change, changed
from llrag_cli.world.checker import objects, wall_color
from llrag_cli.world.sprites import NUMBERS, Scene, prompt, random_scene

BLOCK = 3
JUDGED = 24  # video frames after a switch: 3 s


@dataclass(frozen=True)
class Found:
    """What of a scene is visible in a stretch of video: shares in 0..1, None where there was nothing to judge."""

    wall: float  # of frames
    colors: float  # of its objects, whose colour is visible
    shapes: float | None  # of complete sightings of its colours
    whole: bool  # the wall in most frames, and each object in most of its sightings


def find(frames: Tensor, wall: str, described: dict[str, str | None]) -> Found:
    """Look for a wall and objects (colour: shape) in frames [T, 3, H, W] in [0, 1]."""
    walls = [wall_color(frame) == wall for frame in frames]
    seen = [each for frame in frames for each in objects(frame, wall=wall) if each.color in described]
    complete = [each for each in seen if each.shape is not None and described[each.color] is not None]
    right = [each.shape == described[each.color] for each in complete]
    counts = {color: Counter(each.shape for each in complete if each.color == color) for color in described}
    correct = [bool(count) and count.most_common(1)[0][0] == described[color] for color, count in counts.items()]
    return Found(
        wall=sum(walls) / len(walls),
        colors=len({each.color for each in seen}) / len(described) if described else 0.0,
        shapes=sum(right) / len(right) if right else None,
        whole=2 * sum(walls) > len(walls) and bool(correct) and all(correct),
    )


def small_scenes(count: int, rng: random.Random) -> list[Scene]:
    """Held-out scenes of one or two objects that stay in view."""
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng, unseen=True)
        if scene.motion != "pan":
            scenes.append(scene)
    return scenes


def vague(scene: Scene) -> str:
    """A prompt that says how many objects there are and nothing else."""
    count = len(scene.sprites)
    return "a shape in front of a wall" if count == 1 else f"{NUMBERS[count][0]} shapes in front of a wall"


def described(scene: Scene) -> dict[str, str | None]:
    """Colours of the objects, with their shapes."""
    return {sprite.color: sprite.shape for sprite in scene.sprites}


# --- switches ------------------------------------------------------------------------------------------


def after_switch(scene: Scene, change: Change, rng: random.Random) -> Scene:
    """A held-out scene that shares with another what ``change`` leaves."""
    if change == "everything":
        while True:
            other = small_scenes(1, rng)[0]
            colors = {sprite.color for sprite in scene.sprites}
            if other.wall != scene.wall and not colors & {sprite.color for sprite in other.sprites}:
                return other
    return changed(scene, change, rng) or scene


def switches(pipeline: Pipeline, scenes: Sequence[Scene], after: Sequence[Scene], *, block: int, seed: int) -> Tensor:
    """Videos [B, T, 3, H, W] in [0, 1] that switch from one prompt to another at a block, and go on for 4 blocks."""
    config = pipeline.config
    frames = BLOCK * (block + 4)
    blocks = rollout(
        pipeline.backbone,
        pipeline.text.encode([prompt(scene) for scene in scenes]),
        frames=frames,
        shape=(pipeline.backbone.channels, config.backbone.height, config.backbone.width),
        block=BLOCK,
        schedule=schedule_of(config),
        memory=config.memory,
        history=History(pipeline.encode_key, frames=frames),
        noise=AddressedNoise(seed, range(len(scenes))),
        prompt_schedule={block: pipeline.text.encode([prompt(scene) for scene in after])},
    )
    stream = pipeline.decoder.stream()
    return torch.cat([stream.decode(each.latents) for each in blocks], dim=1) / 2 + 0.5


# --- cuts ----------------------------------------------------------------------------------------------


class Shooting:
    """A batch of videos made of shots with cuts between them, with explicit contexts."""

    def __init__(self, pipeline: Pipeline, *, batch: int, frames: int, seed: int) -> None:
        self.pipeline, self.batch = pipeline, batch
        self.latents = torch.zeros(batch, frames, pipeline.backbone.channels, 8, 8)
        self.keys = torch.zeros(batch, frames, 1)
        self.noise = AddressedNoise(seed, range(batch))
        self.schedule = schedule_of(pipeline.config)
        cache = WanKVCache(layers=pipeline.backbone.layers, sink=1, recent=None, frames=frames)
        self.session: WanSession = pipeline.backbone.start(pipeline.text.encode([""] * batch), cache)
        self.history = History(pipeline.encode_key)

    def shot(
        self,
        prompts: Sequence[str],
        *,
        first: int,
        blocks: int,
        pool: Sequence[int] = (),
        sink: int | None = None,
        given: Tensor | None = None,
    ) -> Tensor:
        """Frames [B, T, 3, H, W] in [0, 1] of a shot at latent frames from ``first`` on, after a cut.

        ``pool`` are the latent frames that may be retrieved, ``sink`` the one that is kept; ``given`` [B, F, ...] are
        latents that are taken as they are.
        """
        memory = self.pipeline.config.memory
        count = memory.retrieved if isinstance(memory, RetrievalMemory) else 0
        self.session.set_prompt(self.pipeline.text.encode(prompts), start=first)
        kept = 0 if sink is None else 1
        for index in range(blocks):
            start = first + BLOCK * index
            plain = context_of(memory, start=start - first + kept, block=BLOCK)
            shared = tuple(first + frame - kept if frame >= kept else sink or 0 for frame in plain.shared)
            context = Context(shared, plain.shared_times, plain.start_time)
            if pool and count:
                query = self._keys_of(self._draft(context, start) if index == 0 else self.latents[:, start - 1 : start])
                positions, _ = top(cosine_similarities(query[:, 0], self.keys[:, list(pool)]), count)
                context = replace(context, retrieved=tuple(tuple(pool[p] for p in row) for row in positions.tolist()))
            self._set(context, start)
            if given is None:
                made = denoise(
                    self.session,
                    self.schedule,
                    self.noise,
                    steps=self.schedule.steps,
                    block=start // BLOCK,
                    shape=(self.batch, BLOCK, *self.latents.shape[2:]),
                )
            else:
                made = given[:, BLOCK * index : BLOCK * (index + 1)]
            self.latents[:, start : start + BLOCK] = made
            keys = self._keys_of(made)
            if self.keys.shape[2] != keys.shape[2]:
                self.keys = torch.zeros(*self.keys.shape[:2], keys.shape[2])
            self.keys[:, start : start + BLOCK] = keys
            self.session.update_cache(made)
        return self._decoded(first, blocks)

    def _set(self, context: Context, start: int) -> None:
        self.session.set_context(context, start=start, block=BLOCK, height=8, width=8)

    def _draft(self, context: Context, start: int) -> Tensor:
        self._set(context, start)
        noise = self.noise.draw(start // BLOCK, 0, (self.batch, BLOCK, *self.latents.shape[2:]))
        step = self.schedule.steps[0]
        return self.schedule.clean(noise, self.session.flow(noise, step), step)[:, -1:]

    def _keys_of(self, latents: Tensor) -> Tensor:
        return self.history.keys_of(latents)

    def _decoded(self, first: int, blocks: int) -> Tensor:
        return self.pipeline.decoder.stream().decode(self.latents[:, first : first + BLOCK * blocks]) / 2 + 0.5


def observed(frames: Tensor, scene: Scene) -> tuple[str, dict[str, str | None]]:
    """Wall and objects that a shot [T, 3, H, W] really shows, of those that its scene names."""
    sampled = frames[::4]
    wall = Counter(wall_color(frame) for frame in sampled).most_common(1)[0][0]
    seen = [each for frame in sampled for each in objects(frame, wall=wall)]
    found: dict[str, str | None] = {}
    for color in {sprite.color for sprite in scene.sprites}:
        shapes = Counter(each.shape for each in seen if each.color == color and each.shape)
        if shapes:
            found[color] = shapes.most_common(1)[0][0]
    return wall, found


# --- the report ------------------------------------------------------------------------------------------


def percent(values: Sequence[float | None]) -> str:
    """The mean in percent."""
    known = [value for value in values if value is not None]
    return f"{100 * sum(known) / len(known):4.0f}" if known else "   -"


def line(name: str, found: Sequence[Found], extra: str = "") -> str:
    """One row of the report."""
    cells = [percent([getattr(each, field) for each in found]) for field in ("wall", "colors", "shapes", "whole")]
    return f"  {name:34s} {'  '.join(cells)}  {extra}"


def strip(videos: Sequence[Tensor], path: Path, *, stride: int = 6) -> None:
    """Write videos [T, 3, H, W] as rows of one picture."""
    rows = [torch.cat(list(video[::stride]), dim=2) for video in videos]
    width = max(row.shape[2] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[2])) for row in rows]
    picture = (torch.cat(padded, dim=1).clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    Image.fromarray(picture.numpy()).save(path)


def report_switches(pipeline: Pipeline, count: int, *, seed: int, out: Path | None, say: Callable[[str], None]) -> None:
    """Measure switches of several kinds, early and late in a video."""
    changes: tuple[Change, ...] = ("everything", "objects", "wall", "object")
    for block in (3, 6):
        for change in changes:
            rng = random.Random(f"switch {change} {seed}")
            before = small_scenes(count, rng)
            after = [after_switch(scene, change, rng) for scene in before]
            videos = switches(pipeline, before, after, block=block, seed=seed)
            at = 4 * (BLOCK * block - 1) + 1
            found, stays = [], []
            for video, old, new in zip(videos, before, after, strict=True):
                stretch = video[at : at + JUDGED : 2]
                found.append(find(stretch, new.wall, described(new)))
                gone = set(described(old)) - set(described(new))
                late = stretch[len(stretch) // 3 :]
                seen = [{each.color for each in objects(frame, wall=new.wall)} for frame in late]
                stays += [sum(color in colors for colors in seen) / len(seen) for color in gone]
            say(line(f"switch at block {block}: {change}", found, f"old objects stay {percent(stays)}"))
            if out is not None:
                strip(list(videos[:8]), out / f"switch-{block}-{change}.png")


def report_returns(pipeline: Pipeline, count: int, *, seed: int, out: Path | None, say: Callable[[str], None]) -> None:
    """Measure what a vague prompt brings back, and that a full one is followed, with the same frames retrieved."""
    rng = random.Random(f"return {seed}")
    first = small_scenes(count, rng)
    other = [after_switch(scene, "everything", rng) for scene in first]
    third = [after_switch(scene, "everything", rng) for scene in first]
    film = Shooting(pipeline, batch=count, frames=39, seed=seed)
    shown = film.shot([prompt(scene) for scene in first], first=0, blocks=6)
    elsewhere = film.shot([prompt(scene) for scene in other], first=18, blocks=3)
    pools = {"A": range(18), "B": range(18, 27), "nothing": range(0)}
    rows: dict[str, Tensor] = {}
    for name, pool in pools.items():
        again = film.shot(
            [vague(scene) for scene in first], first=27, blocks=4, pool=pool, sink=0 if name == "A" else None
        )
        found = []
        for past, now, scene in zip(shown, again, first, strict=True):
            found.append(find(now[::4], *observed(past, scene)))
        say(line(f"vague, retrieved {name}: A returns", found))
        if name == "B":
            found = [
                find(now[::4], *observed(past, scene)) for past, now, scene in zip(elsewhere, again, other, strict=True)
            ]
            say(line("vague, retrieved B: B returns", found))
        rows[name] = again
    for name, pool in pools.items():
        sink = 0 if name == "A" else None
        again = film.shot([prompt(scene) for scene in third], first=27, blocks=4, pool=pool, sink=sink)
        found = [find(now[::4], scene.wall, described(scene)) for now, scene in zip(again, third, strict=True)]
        stays = [
            sum(any(each.color in described(old) for each in objects(frame, wall=new.wall)) for frame in now[::4]) / 12
            for now, old, new in zip(again, first, third, strict=True)
        ]
        extra = f"objects of A {percent(stays)}" if name == "A" else ""
        say(line(f"a third scene, retrieved {name}", found, extra))
        rows[f"third {name}"] = again
    other_wall = [with_wall(scene, rng) for scene in first]
    again = film.shot(
        [f"{vague(scene)[:-4]}{new.pattern} {new.wall} wall" for scene, new in zip(first, other_wall, strict=True)],
        first=27,
        blocks=4,
        pool=range(18),
        sink=0,
    )
    found = []
    for past, now, scene, new in zip(shown, again, first, other_wall, strict=True):
        found.append(find(now[::4], new.wall, observed(past, scene)[1]))
    say(line("A's objects, another wall named", found))
    rows["wall"] = again
    for prompts, name in (([""] * count, "empty"), ([prompt(scene) for scene in first], "own")):
        reference = Shooting(pipeline, batch=count, frames=18, seed=seed)
        reference.shot(prompts, first=0, blocks=1, given=film.latents[:, 9:12])
        again = reference.shot([vague(scene) for scene in first], first=3, blocks=4, pool=range(3))
        found = [find(now[::4], *observed(past, scene)) for past, now, scene in zip(shown, again, first, strict=True)]
        say(line(f"vague, a reference, {name} prompt", found))
    if out is not None:
        for number in range(min(6, count)):
            strip(
                [shown[number], elsewhere[number], *(row[number] for row in rows.values())],
                out / f"return-{number}.png",
            )


def with_wall(scene: Scene, rng: random.Random) -> Scene:
    """The scene in front of another wall, whose colour no object has."""
    walls = [
        name
        for name in ("blue", "green", "gray", "brown", "pink")
        if name != scene.wall and all(sprite.color != name for sprite in scene.sprites)
    ]
    return replace(scene, wall=rng.choice(walls))


def main(
    count: Annotated[int, typer.Option(min=1, help="Videos of each kind")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of scenes and videos")] = 0,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 2,
    out: Annotated[Path | None, typer.Option(help="Write strips of frames here")] = None,
) -> None:
    """Generate videos with switches and cuts, and print how much of what they should show is seen."""
    torch.set_num_threads(threads)
    config = load_config("tiny", settings=["memory.archive=device", *(settings or ())])
    pipeline = Pipeline.load(config, device="cpu")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    typer.echo(f"  {f'{count} videos each, in percent':34s} wall  colours  shapes  all")
    report_switches(pipeline, count, seed=seed, out=out, say=typer.echo)
    report_returns(pipeline, count, seed=seed, out=out, say=typer.echo)


if __name__ == "__main__":
    typer.run(main)
