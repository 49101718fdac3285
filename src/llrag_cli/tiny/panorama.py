"""Long panoramas with known answers: which object is in view in which latent frame."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from llrag_cli.config import video_frames
from llrag_cli.tiny.vae import TIME, TinyVAE
from llrag_cli.tiny.world import (
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

OBJECTS, SPACING = 8, 80  # pixels between objects; a frame shows 64


@dataclass(frozen=True)
class Panorama:
    """Latents [F, C, h, w] of a scene, and for each frame the object in view nearest its middle, [F]; -1 is none."""

    latents: Tensor
    labels: Tensor


def long_scene(rng: random.Random) -> Scene:
    """Eight different objects round a wall of 640 pixels, in few colours: what tells most of them apart is shape."""
    wall = rng.choice(tuple(WALL_COLORS))
    colors = rng.sample([color for color in OBJECT_COLORS if color != wall], 3)
    kinds = [Sprite(color, shape, size) for color in colors for shape in SHAPES for size in SIZES]
    return Scene(tuple(rng.sample(kinds, OBJECTS)), wall, rng.choice(PATTERNS), "pan", OBJECTS * SPACING)


@torch.no_grad()
def make_panorama(vae: TinyVAE, *, seconds: float, seed: int) -> Panorama:
    """A camera over a long scene, with pauses and turns for half of the seeds; the same seed, the same video."""
    rng = random.Random(f"panorama {seed}")
    scene = long_scene(rng)
    frames = 1 + math.ceil(seconds * FPS / TIME)
    track = move(scene, video_frames(frames), rng)
    video, _ = render(scene, track)
    ahead = track.centers[::TIME, :, 0] - SIZE / 2  # [F, O], of the last video frame of each latent frame
    nearest = ahead.abs().argmin(dim=1)
    seen = ahead.abs().amin(dim=1) <= SIZE / 2
    latents = vae.encode((video * 2 - 1)[None])[0]
    return Panorama(latents, torch.where(seen, nearest, -1))
