"""Train the embedded VAE on clips of the sprite world."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llrag_cli.models.embedded.vae import TIME, TinyVAE
from llrag_cli.training.embedded.optim import optimizers
from llrag_cli.world.sprites import clip, random_scene

logger = logging.getLogger(__name__)

BOTTLENECK = 2e-3  # weight of the divergence; detail that the decoder can fill in is left out of the latents


def snippets(count: int, *, frames: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training clips as bytes: frames [N, T, 3, H, W] and object cover [N, T, 1, H, W]."""
    rng = random.Random(seed)
    videos, covers = [], []
    for _ in range(count):
        frame, cover = clip(random_scene(rng), frames, rng)
        videos.append((frame * 255).round().byte())
        covers.append((cover.sum(1, keepdim=True) * 255).round().byte())
    return torch.stack(videos), torch.stack(covers)


def batches(data: tuple[Tensor, Tensor], size: int, *, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless random batches, frames in [-1, 1] and object weight in [0, 1]; half of them reversed in time."""
    generator = torch.Generator().manual_seed(seed)
    videos, covers = data
    while True:
        for chosen in torch.randperm(len(videos), generator=generator).split(size):
            video, cover = videos[chosen].float() / 127.5 - 1, covers[chosen].float() / 255
            if torch.rand((), generator=generator) < 0.5:
                video, cover = video.flip(1), cover.flip(1)
            yield video, cover


def reconstruction(vae: TinyVAE, video: Tensor, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Decode a sample of the posterior: video [B, T, 3, H, W] and the mean KL divergence in nats."""
    mean, logvar = vae.posterior(video)
    latents = mean + (0.5 * logvar).exp() * torch.randn(mean.shape, generator=generator)
    before = torch.cat((latents[:, :1], latents[:, :-1]), dim=1)
    frames = vae.decode_raw(latents, before).flatten(1, 2)[:, TIME - 1 :]
    return frames, 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def differences(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Between neighbouring pixels of frames [..., H, W], down and across."""
    return frames[..., 1:, :] - frames[..., :-1, :], frames[..., 1:] - frames[..., :-1]


def distortion(frames: Tensor, video: Tensor, cover: Tensor) -> Tensor:
    """How far frames are from a video [B, T, 3, H, W], weighted towards objects, whose cover is [B, T, 1, H, W].

    Absolute differences, of pixels and of neighbouring pixels, keep outlines crisp where a squared error averages them.
    """
    near = F.max_pool2d(cover.flatten(0, 1), 13, 1, 6).view_as(cover)
    weight = 1 + 5 * near  # objects and their outlines are small, but matter most
    error = frames - video
    down, across = differences(error)
    edges = (down.abs() * weight[..., 1:, :]).mean() + (across.abs() * weight[..., 1:]).mean()
    return ((0.5 * error.square() + 0.4 * error.abs()) * weight).mean() + 0.4 * edges


def keep_encoder(vae: TinyVAE, file: Path) -> None:
    """Take the encoder and the statistics of another VAE, and what its decoder's first layers have in common."""
    own = vae.state_dict()
    theirs = {name: value.float() for name, value in load_file(file).items()}
    coarse, fine, _ = vae.config.decoder_blocks
    common = {f"decoder.{number}." for number in range(3 + coarse + fine)}
    for name, value in theirs.items():
        if not name.startswith("decoder.") or any(name.startswith(part) for part in common):
            own[name].copy_(value)
    vae.encoder.requires_grad_(requires_grad=False)


def train_vae(
    out: Path, *, steps: int, seed: int = 0, size: int = 12, clips: int = 5000, encoder: Path | None = None
) -> None:
    """Train the VAE and write its weights, with the statistics of its latents, to ``out``.

    With ``encoder`` the latents stay those of that VAE, and only a decoder is trained.
    """
    torch.manual_seed(seed)
    vae = TinyVAE()
    if encoder is not None:
        keep_encoder(vae, encoder)
    data, held = snippets(clips, frames=9, seed=seed), snippets(64, frames=9, seed=seed + 1)
    optims = optimizers(vae, matrix_lr=4e-3, other_lr=2e-3)
    rates = [group["lr"] for optim in optims for group in optim.param_groups]
    generator = torch.Generator().manual_seed(seed)
    average = {name: value.clone() for name, value in vae.state_dict().items()}
    saved = time.monotonic()
    for step, (video, cover) in zip(range(steps), batches(data, size, seed=seed), strict=False):
        progress = step / steps
        factor = min(1.0, (step + 1) / 30) * max(0.02, math.cos(0.5 * math.pi * progress))
        for group, rate in zip([g for o in optims for g in o.param_groups], rates, strict=True):
            group["lr"] = rate * factor
        frames, divergence = reconstruction(vae, video, generator=generator)
        loss = distortion(frames, video, cover)
        if encoder is None:
            loss = loss + BOTTLENECK * divergence
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        for name, value in vae.state_dict().items():
            average[name].lerp_(value, 0.01 if step > 100 else 0.2)
        if step % 50 == 0:
            logger.info("step %d loss %.4f kl %.3f %s", step, loss.item(), divergence.item(), _quality(vae, held))
        if time.monotonic() - saved > 180:
            saved = time.monotonic()
            _save(vae, average, data, out, measure=encoder is None)
    _save(vae, average, data, out, measure=encoder is None)
    vae.load_state_dict(average)
    logger.info("average weights: %s", _quality(vae, held))


@torch.no_grad()
def _quality(vae: TinyVAE, held: tuple[Tensor, Tensor]) -> str:
    video, cover = held[0].float() / 127.5 - 1, held[1].float() / 255
    error = (vae.decode(vae.encode(video)) - video).square() / 4
    inside = (error.mean(2, keepdim=True) * cover).sum() / cover.sum()
    return f"psnr {-10 * error.mean().log10():.2f} dB, on objects {-10 * inside.log10():.2f} dB"


@torch.no_grad()
def _save(vae: TinyVAE, average: dict[str, Tensor], data: tuple[Tensor, Tensor], out: Path, *, measure: bool) -> None:
    """Write the averaged weights in half precision; ``measure``: with per-channel statistics of their latents."""
    final = TinyVAE(vae.config)
    final.load_state_dict(average)
    if measure:
        mean, _ = final.posterior(data[0][:512].float() / 127.5 - 1)
        final.mean.copy_(mean.mean(dim=(0, 1, 3, 4)))
        final.std.copy_(mean.std(dim=(0, 1, 3, 4)))
    tensors = {name: value.half().contiguous() for name, value in final.state_dict().items()}
    save_file(tensors, out, metadata={"config": vae.config.model_dump_json()})
