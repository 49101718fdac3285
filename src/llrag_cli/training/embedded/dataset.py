"""Precomputed latents of sprite-world clips, for training the embedded backbone."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llrag_cli.config import LATENT_SPACES
from llrag_cli.models.embedded.vae import TIME, TinyVAE
from llrag_cli.world.sprites import SIZE, Scene, Sprite, clip, random_scene


@dataclass(frozen=True)
class LatentClips:
    """Clips as latents [N, F, C, h, w] in half precision, coverage of each latent pixel by shape [N, F, 4, h, w] as
    bytes, and scenes."""

    latents: Tensor
    shapes: Tensor
    scenes: list[Scene]


@torch.no_grad()
def encode_drawn(vae: TinyVAE, video: Tensor) -> Tensor:
    """Latents [B, n, C, h, w] of frames [B, T, 3, 64, 64] in [0, 1], drawn at the size that the encoder sees."""
    return vae.normalized(vae.posterior_of_reduced(video * 2 - 1)[0])


def latent_cover(cover: Tensor) -> Tensor:
    """Coverage of each latent pixel [F, 4, h, w] as bytes, of coverage [T, 4, 64, 64], T = 4(F-1)+1."""
    whole = torch.cat((cover[:1].expand(TIME, -1, -1, -1), cover[1:])).unflatten(0, (-1, TIME))
    return (F.avg_pool2d(whole.mean(dim=1), 8) * 255).round().byte()


def crowded_scene(rng: random.Random) -> Scene:
    """A scene of two or three objects that are all in view."""
    return random_scene(rng, count=rng.choice((2, 3, 3)), motion=rng.choice(("bounce", "orbit")))


@torch.no_grad()
def make_clips(
    vae: TinyVAE, draw: Callable[[random.Random], Scene], *, count: int, frames: int, seed: int
) -> LatentClips:
    """Render and encode clips of ``frames`` latent frames of scenes from ``draw``; a seed gives the same clips."""
    rng = random.Random(seed)
    latents, shapes = [], []
    scenes: list[Scene] = []
    together = max(1, 96 // frames)
    while len(scenes) < count:
        videos = []
        for _ in range(min(together, count - len(scenes))):
            scene = draw(rng)
            video, cover = clip(scene, LATENT_SPACES["tiny"].video_frames(frames), rng, size=SIZE)
            shapes.append(latent_cover(cover))
            videos.append(video)
            scenes.append(scene)
        latents.append(encode_drawn(vae, torch.stack(videos)).half())
    return LatentClips(torch.cat(latents), torch.stack(shapes), scenes)


def joined(parts: Sequence[LatentClips]) -> LatentClips:
    """Clips of equal length as one."""
    latents, shapes = (torch.cat([getattr(part, name) for part in parts]) for name in ("latents", "shapes"))
    return LatentClips(latents, shapes, [scene for part in parts for scene in part.scenes])


def save_clips(clips: LatentClips, path: Path) -> None:
    """Write clips as safetensors, scenes in the metadata."""
    scenes = json.dumps([asdict(scene) for scene in clips.scenes])
    save_file({"latents": clips.latents, "shapes": clips.shapes}, path, metadata={"scenes": scenes})


def load_clips(path: Path) -> LatentClips:
    """Read clips back."""
    with safe_open(path, framework="pt") as file:
        scenes = [
            Scene(**{**scene, "sprites": tuple(Sprite(**sprite) for sprite in scene["sprites"])})
            for scene in json.loads(file.metadata()["scenes"])
        ]
        return LatentClips(file.get_tensor("latents"), file.get_tensor("shapes"), scenes)
