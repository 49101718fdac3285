"""Long panoramas with known answers: which object is in view in which latent frame."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from llrag_cli.config import LATENT_SPACES
from llrag_cli.world.sprites import (
    FPS,
    OBJECT_COLORS,
    PATTERNS,
    SHAPES,
    SIZE,
    SIZES,
    WALL_COLORS,
    Scene,
    Sprite,
    move,
    render,
)

LATENTS = LATENT_SPACES["tiny"]  # of the embedded model, which is trained on these scenes
World = Literal["colours", "shapes"]
WORLDS: tuple[World, ...] = get_args(World)
SPACING = 80  # pixels between objects; a frame shows 64
LIGHT = 0.35  # largest relative change of brightness


@dataclass(frozen=True)
class Panorama:
    """Latents [F, C, h, w] of a scene, and the object nearest the middle of each frame [F]; -1 if there is none."""

    latents: Tensor
    labels: Tensor


def long_scene(world: World, rng: random.Random) -> Scene:
    """Objects along a wall that closes on itself.

    ``colours``: eight of three colours, four shapes and two sizes, and a brightness that varies with position.
    ``shapes``: four of one colour and size on an evenly lit wall; only their shapes differ, as faces do.
    """
    wall, pattern = rng.choice(tuple(WALL_COLORS)), rng.choice(PATTERNS)
    colors = rng.sample([color for color in OBJECT_COLORS if color != wall], 3 if world == "colours" else 1)
    sizes = tuple(SIZES) if world == "colours" else ("large",)
    kinds = [Sprite(color, shape, size) for color in colors for shape in SHAPES for size in sizes]
    count = min(8, len(kinds))
    shaded = world == "colours"
    return Scene(tuple(rng.sample(kinds, count)), wall, pattern, "pan", count * SPACING, shaded=shaded)


def brightness(frames: int, rng: random.Random) -> Tensor:
    """A factor for each video frame [T], within 1 - LIGHT .. 1 + LIGHT: two waves of 30 to 160 s."""
    time = torch.arange(frames) / FPS
    waves = [torch.sin(2 * math.pi * (time / rng.uniform(30, 160) + rng.random())) for _ in range(2)]
    return 1 + LIGHT * (waves[0] + waves[1]) / 2


@torch.no_grad()
def make_panorama(
    encode: Callable[[Tensor], Tensor], world: World, *, seconds: float, seed: int, changing_light: bool = False
) -> Panorama:
    """A camera over a long scene, with pauses and turns for half of the seeds; the same seed gives the same video.

    ``encode`` makes latents [1, F, C, h, w] of a video [1, T, 3, H, W] in [-1, 1]. In changing light, brightness
    follows two slow waves, as clouds and a camera's exposure make it.
    """
    rng = random.Random(f"{world} {seed}")
    scene = long_scene(world, rng)
    ratio = LATENTS.temporal_ratio
    frames = 1 + math.ceil(seconds * FPS / ratio)
    track = move(scene, LATENTS.video_frames(frames), rng)
    video, _ = render(scene, track)
    if changing_light:
        video = (video * brightness(len(video), rng)[:, None, None, None]).clamp(0, 1)
    ahead = track.centers[::ratio, :, 0] - SIZE / 2  # [F, O], of the last video frame of each latent frame
    nearest = ahead.abs().argmin(dim=1)
    seen = ahead.abs().amin(dim=1) <= SIZE / 2
    latents = encode((video * 2 - 1)[None])[0]
    return Panorama(latents, torch.where(seen, nearest, -1))
