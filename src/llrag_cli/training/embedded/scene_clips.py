"""Clips of several shots, for training what a switch of the prompt and a cut mean.

A *switch* clip is one video whose content changes between two blocks. A *cut* clip is a list of shots, each of which
begins like a new video; the last one returns to the first, or shows something else.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llrag_cli.config import LATENT_SPACES
from llrag_cli.models.embedded.vae import TinyVAE
from llrag_cli.training.embedded.dataset import encode_drawn, latent_cover
from llrag_cli.world.sprites import (
    OBJECT_COLORS,
    PATTERNS,
    SHAPES,
    SIZE,
    WALL_COLORS,
    WORDS,
    Scene,
    Sprite,
    Track,
    caption,
    held_out,
    move,
    random_scene,
    render,
    vague_caption,
)

BLOCK = 3
Kind = Literal["switch", "cut"]
# first blocks of the shots, and the end: a switch while the window still holds the first frame, one later, a return
SCENE_KINDS: dict[str, tuple[Kind, tuple[int, ...]]] = {
    "switch-3": ("switch", (0, 3, 7)),
    "switch-6": ("switch", (0, 6, 10)),
    "cut": ("cut", (0, 4, 7, 11)),
}
# what the later shot has to do with the first; `elsewhere` is the first scene later, or with the camera turned back
Change = Literal["everything", "objects", "wall", "object", "count", "motion", "nothing", "elsewhere"]
SWITCHES: tuple[tuple[Change, float], ...] = (
    ("everything", 0.27),
    ("objects", 0.2),
    ("wall", 0.15),
    ("object", 0.18),
    ("count", 0.08),
    ("motion", 0.07),
    ("nothing", 0.05),
)
CUTS: tuple[tuple[Change, float], ...] = (
    ("elsewhere", 0.6),
    ("everything", 0.15),
    ("wall", 0.13),
    ("object", 0.07),
    ("objects", 0.05),
)


@dataclass(frozen=True)
class SceneClips:
    """Latents [N, F, C, h, w] in half precision, coverage by shape [N, F, 4, h, w] as bytes, and of each clip the
    scenes of its shots. ``shots`` are the first blocks of the shots, the same in all clips, and the end."""

    kind: Kind
    shots: tuple[int, ...]
    latents: Tensor
    shapes: Tensor
    scenes: list[tuple[Scene, ...]]
    changes: list[Change]


# --- scenes that have something in common ------------------------------------------------------------


def with_new_wall(scene: Scene, rng: random.Random) -> Scene | None:
    """The same objects on a wall of another colour; None if no wall is allowed."""
    walls = [
        wall
        for wall in WALL_COLORS
        if wall != scene.wall
        and not any(sprite.color == wall or held_out(replace(sprite, size="large"), wall) for sprite in scene.sprites)
    ]
    pattern = rng.choice((scene.pattern, *PATTERNS))
    return replace(scene, wall=rng.choice(walls), pattern=pattern) if walls else None


def with_new_objects(scene: Scene, places: list[int], rng: random.Random) -> Scene | None:
    """Other objects in some places, of the same size; colours stay different. None if no object is allowed."""
    sprites = list(scene.sprites)
    for place in places:
        taken = {sprite.color for index, sprite in enumerate(sprites) if index != place}
        before = sprites[place]
        kinds = [
            Sprite(color, shape, before.size)
            for color in OBJECT_COLORS
            for shape in SHAPES
            if color != scene.wall
            and color not in taken
            and (color, shape) != (before.color, before.shape)
            and not held_out(Sprite(color, shape, "large"), scene.wall)
        ]
        if not kinds:
            return None
        alike = [kind for kind in kinds if (kind.color == before.color) != (kind.shape == before.shape)]
        sprites[place] = rng.choice(alike if alike and rng.random() < 0.5 else kinds)
    return replace(scene, sprites=tuple(sprites))


def changed(scene: Scene, change: Change, rng: random.Random) -> Scene | None:
    """A scene that differs from another one as ``change`` says; None where that is not possible."""
    places = range(len(scene.sprites))
    if change in ("nothing", "elsewhere"):
        return scene
    if change == "wall":
        return with_new_wall(scene, rng)
    if change == "objects":
        return with_new_objects(scene, list(places), rng)
    if change == "object":
        return with_new_objects(scene, [rng.choice(places)], rng)
    if change == "motion":
        if scene.motion == "pan":
            return None
        return replace(scene, motion="orbit" if scene.motion == "bounce" else "bounce")
    if change == "count":
        if scene.motion == "pan":
            return None
        if len(scene.sprites) > 1:
            return replace(scene, sprites=scene.sprites[:1])
        both = replace(scene, sprites=(*scene.sprites, scene.sprites[0]))
        return with_new_objects(both, [1], rng)
    other = random_scene(rng)
    return other if rng.random() < 0.7 else replace(other, pattern=scene.pattern)


def drawn_pair(changes: tuple[tuple[Change, float], ...], rng: random.Random) -> tuple[Scene, Scene, Change]:
    """A random scene, one that has something to do with it, and what."""
    while True:
        scene = random_scene(rng)
        change: Change = rng.choices([name for name, _ in changes], [weight for _, weight in changes])[0]
        other = changed(scene, change, rng)
        if other is not None:
            return scene, other, change


# --- captions ----------------------------------------------------------------------------------------


def switch_captions(before: Scene, after: Scene, change: Change, rng: random.Random) -> tuple[str, str]:
    """Captions of both parts of a switch. What the second leaves out stays as it was."""
    first = caption(before, rng, keep=rng.choice((1.0, 1.0, 0.6)))
    if change == "wall" and rng.random() < 0.5:
        if rng.random() < 0.4:
            return first, vague_caption(after, rng, wall=True)
        text = caption(after, rng, keep=0.6)
        return first, text if set(WORDS[after.wall]) & set(text.split()) else caption(after, rng)
    if change == "nothing" and rng.random() < 0.5:
        return first, vague_caption(after, rng)
    return first, caption(after, rng)


def return_caption(scene: Scene, change: Change, rng: random.Random) -> str:
    """The caption of a last shot: mostly vague where it shows what the first one did, otherwise complete."""
    kind = rng.random()
    if change == "elsewhere":
        if kind < 0.4:
            return vague_caption(scene, rng)
        if kind < 0.75:
            return caption(scene, rng, keep=0.4)
        return "" if kind < 0.8 else caption(scene, rng)
    if change == "wall" and kind < 0.6:
        return vague_caption(scene, rng, wall=True)
    return caption(scene, rng)


# --- pixels and latents ------------------------------------------------------------------------------


def switch_video(
    before: Scene, after: Scene, change: Change, *, at: int, frames: int, rng: random.Random
) -> tuple[Tensor, Tensor]:
    """Frames [T, 3, H, W] and coverage [T, 4, H, W] of a video that changes at a video frame.

    What both scenes share keeps its path, and what is replaced hands it on.
    """
    goes_on = change not in ("everything", "motion") and not (change == "objects" and rng.random() < 0.3)
    if not goes_on:
        parts = [
            render(before, move(before, at, rng), size=SIZE),
            render(after, move(after, frames - at, rng), size=SIZE),
        ]
    else:
        most = before if len(before.sprites) >= len(after.sprites) else after
        track = move(most, frames, rng)
        parts = [
            render(scene, Track(track.centers[part, : len(scene.sprites)], track.camera[part]), size=SIZE)
            for scene, part in ((before, slice(0, at)), (after, slice(at, frames)))
        ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def later_track(track: Track, *, first: int, last: int, back: bool) -> Track:
    """Video frames first .. last - 1 of a track; ``back``: in reverse."""
    part = slice(first, last)
    centers, camera = track.centers[part], track.camera[part]
    return Track(centers.flip(0), camera.flip(0)) if back else Track(centers, camera)


def cut_videos(
    scenes: tuple[Scene, Scene, Scene], change: Change, *, lengths: tuple[int, ...], rng: random.Random
) -> list[tuple[Tensor, Tensor]]:
    """The shots of a cut clip, of ``lengths`` video frames: a first, another, and one that may return to the first."""
    first, other, last = scenes
    track = move(first, lengths[0] + lengths[2] + 240, rng)
    shots = [
        render(first, later_track(track, first=0, last=lengths[0], back=False), size=SIZE),
        render(other, move(other, lengths[1], rng), size=SIZE),
    ]
    if change in ("everything", "objects"):
        return [*shots, render(last, move(last, lengths[2], rng), size=SIZE)]
    if first.motion == "pan" and rng.random() < 0.75:  # what has been in view comes into view again
        spare = max(0, lengths[0] - lengths[2])
        begin = rng.randint(0, spare)
        again = later_track(track, first=begin, last=begin + lengths[2], back=rng.random() < 0.7)
    else:
        begin = lengths[0] + rng.randrange(240)
        again = later_track(track, first=begin, last=begin + lengths[2], back=False)
    return [*shots, render(last, again, size=SIZE)]


@torch.no_grad()
def make_scene_clips(vae: TinyVAE, kind: Kind, *, shots: tuple[int, ...], count: int, seed: int) -> SceneClips:
    """Render and encode clips whose shots begin at blocks ``shots[:-1]`` and end at ``shots[-1]``."""
    rng = random.Random(f"{kind} {shots} {seed}")
    make: Callable[[], tuple[tuple[Scene, ...], Change, list[tuple[Tensor, Tensor]]]]
    video_frames = LATENT_SPACES["tiny"].video_frames

    def switch() -> tuple[tuple[Scene, ...], Change, list[tuple[Tensor, Tensor]]]:
        before, after, change = drawn_pair(SWITCHES, rng)
        at, frames = video_frames(BLOCK * shots[1]), video_frames(BLOCK * shots[2])
        return (before, after), change, [switch_video(before, after, change, at=at, frames=frames, rng=rng)]

    def cut() -> tuple[tuple[Scene, ...], Change, list[tuple[Tensor, Tensor]]]:
        first, last, change = drawn_pair(CUTS, rng)
        alike: Change = rng.choice(("everything", "everything", "everything", "objects", "wall", "object"))
        scenes = first, changed(first, alike, rng) or random_scene(rng), last
        lengths = tuple(video_frames(BLOCK * (stop - start)) for start, stop in pairwise(shots))
        return scenes, change, cut_videos(scenes, change, lengths=lengths, rng=rng)

    make = switch if kind == "switch" else cut
    latents, shapes = [], []
    scenes: list[tuple[Scene, ...]] = []
    changes: list[Change] = []
    for _ in range(count):
        content, change, videos = make()
        scenes.append(content)
        changes.append(change)
        latents.append(torch.cat([encode_drawn(vae, video[None])[0] for video, _ in videos]).half())
        shapes.append(torch.cat([latent_cover(cover) for _, cover in videos]))
    return SceneClips(kind, shots, torch.stack(latents), torch.stack(shapes), scenes, changes)


def save_scene_clips(clips: SceneClips, path: Path) -> None:
    """Write clips as safetensors, everything but tensors in the metadata."""
    content = {
        "kind": clips.kind,
        "shots": clips.shots,
        "scenes": [[asdict(scene) for scene in scenes] for scenes in clips.scenes],
        "changes": clips.changes,
    }
    metadata = {"clips": json.dumps(content)}
    save_file({"latents": clips.latents, "shapes": clips.shapes}, path, metadata=metadata)


def load_scene_clips(path: Path) -> SceneClips:
    """Read clips back."""
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["clips"])
        scenes = [
            tuple(
                Scene(**{**scene, "sprites": tuple(Sprite(**sprite) for sprite in scene["sprites"])}) for scene in row
            )
            for row in content["scenes"]
        ]
        return SceneClips(
            content["kind"],
            tuple(content["shots"]),
            file.get_tensor("latents"),
            file.get_tensor("shapes"),
            scenes,
            content["changes"],
        )
