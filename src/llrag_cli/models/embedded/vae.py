"""The embedded model's causal VAE: small enough to train on a laptop, streaming like Wan's.

Time is grouped as in Wan's VAE: the first latent frame holds one video frame, each later one four, so
n latent frames are exactly 4(n-1)+1 video frames. Everything else is two-dimensional: four frames are
stacked as channels, the encoder sees the frame before them, the decoder the latent frame before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from llrag_cli.models.vae import PlainDecoder

TIME = 4  # video frames in each latent frame but the first
ENCODED_TOGETHER = 8  # latent frames, which bounds the memory of encoding a long video
PATCH = 4  # pixels folded into channels before the first convolution, and after the last
REDUCE = 2  # the encoder sees frames averaged to half the size; the decoder draws the outlines


class TinyVAEConfig(BaseModel):
    """Sizes of the embedded VAE; it shrinks space by 16 and time by 4."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    latent_channels: int = Field(default=8, gt=0, description="channels of a latent frame")
    sharp: int = Field(default=32, gt=0, description="features at a quarter of the resolution, decoder only")
    fine: int = Field(default=64, gt=0, description="features at an eighth of the resolution")
    coarse: int = Field(default=128, gt=0, description="features at a sixteenth of the resolution")
    encoder_blocks: tuple[int, int] = Field(default=(1, 2), description="residual blocks, fine then coarse")
    decoder_blocks: tuple[int, int, int] = Field(
        default=(3, 3, 2), description="residual blocks, coarse, fine, then sharp"
    )


class Residual(nn.Module):
    """Two normalised 3x3 convolutions beside a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class TinyVAE(nn.Module):
    """Video [B, T, 3, H, W] in [-1, 1] to latent frames [B, n, C, H/16, W/16] and back, T = 4(n-1)+1."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: TinyVAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TinyVAEConfig()
        sharp, fine, coarse, channels = config.sharp, config.fine, config.coarse, config.latent_channels
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            nn.Conv2d(3 * (TIME + 1) * PATCH**2, fine, 1),
            *(Residual(fine) for _ in range(config.encoder_blocks[0])),
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1),
            *(Residual(coarse) for _ in range(config.encoder_blocks[1])),
            nn.GroupNorm(8, coarse),
            nn.SiLU(),
            nn.Conv2d(coarse, 2 * channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(2 * channels, coarse, 3, padding=1),
            *(Residual(coarse) for _ in range(config.decoder_blocks[0])),
            nn.Conv2d(coarse, 4 * fine, 1),
            nn.PixelShuffle(2),
            *(Residual(fine) for _ in range(config.decoder_blocks[1])),
            nn.Conv2d(fine, 4 * sharp, 1),
            nn.PixelShuffle(2),
            *(Residual(sharp) for _ in range(config.decoder_blocks[2])),
            nn.GroupNorm(8, sharp),
            nn.SiLU(),
            nn.Conv2d(sharp, 3 * TIME * PATCH**2, 3, padding=1),
            nn.PixelShuffle(PATCH),
        )
        self.register_buffer("mean", torch.zeros(channels))  # of raw latents, per channel
        self.register_buffer("std", torch.ones(channels))

    def posterior(self, video: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and log-variance [B, n, C, h, w] of the raw (not normalised) latents of a video.

        ``before`` [B, 1, 3, H, W] is the frame that came before T = 4n frames; without it these open the video.
        """
        return self.posterior_of_reduced(reduce(video), None if before is None else reduce(before))

    def posterior_of_reduced(self, video: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As ``posterior``, of frames [B, T, 3, H/2, W/2] at half the size."""
        batch, frames = video.shape[:2]
        if before is None:
            _require_whole_groups(frames)
            before = video[:, :1]
            video = torch.cat((before.expand(-1, TIME - 1, -1, -1, -1), video), dim=1)  # the first stands for four
        whole = video.unflatten(1, (-1, TIME))  # [B, n, 4, 3, H/2, W/2]
        lead = torch.cat((before[:, None], whole[:, :-1, -1:]), dim=1)  # [B, n, 1, 3, H/2, W/2]
        stacked = torch.cat((lead, whole), dim=2).flatten(2, 3).flatten(0, 1)  # [B*n, 15, H/2, W/2]
        mean, logvar = self.encoder(stacked).unflatten(0, (batch, -1)).chunk(2, dim=2)
        return mean, logvar.clamp(-12, 4)

    def decode_raw(self, latents: Tensor, before: Tensor) -> Tensor:
        """Four frames [B, n, 4, 3, H, W] of each raw latent [B, n, C, h, w], given the one before it."""
        paired = torch.cat((latents, before), dim=2).flatten(0, 1)  # [B*n, 2C, h, w]
        frames = self.decoder(paired).unflatten(1, (TIME, 3))  # [B*n, 4, 3, H, W]
        return frames.unflatten(0, latents.shape[:2])

    def encode(self, video: Tensor, before: Tensor | None = None) -> Tensor:
        """Normalised latents [B, n, C, h, w] (unit variance per channel) of video [B, T, 3, H, W], after ``before``."""
        return self.normalized(self.posterior(video, before)[0])

    def normalized(self, raw: Tensor) -> Tensor:
        """Latents of unit variance per channel, of raw ones."""
        return (raw - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    def decode(self, latents: Tensor, before: Tensor | None = None) -> Tensor:
        """Frames [B, T, 3, H, W] in [-1, 1] of normalised latents [B, n, C, h, w].

        ``before`` [B, 1, C, h, w] is the latent frame that came before; without it these open the video.
        """
        lead = latents[:, :1] if before is None else before
        shifted = torch.cat((lead, latents[:, :-1]), dim=1)
        scale, offset = self.std.view(-1, 1, 1), self.mean.view(-1, 1, 1)
        frames = self.decode_raw(latents * scale + offset, shifted * scale + offset).flatten(1, 2)
        return (frames if before is not None else frames[:, TIME - 1 :]).clamp(-1, 1)


def reduce(video: Tensor) -> Tensor:
    """Frames [B, T, 3, H, W] averaged to [B, T, 3, H/2, W/2]."""
    return F.avg_pool2d(video.flatten(0, 1), REDUCE).unflatten(0, video.shape[:2])


def _require_whole_groups(frames: int) -> None:
    if (frames - 1) % TIME:
        raise ValueError(f"a video of {frames} frames is not 4(n-1)+1 long")


class TinyDecoder(PlainDecoder):
    """The weights of the embedded VAE."""

    spatial_ratio = 16
    temporal_ratio = TIME
    reach = 1

    def __init__(self, vae: TinyVAE) -> None:
        self.vae = vae.eval().requires_grad_(requires_grad=False)

    def stream(self) -> TinyDecoderStream:
        """As ``Decoder.stream``."""
        return TinyDecoderStream(self.vae)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """As ``Decoder.encode``; a few latent frames at a time, so that a long video takes little memory."""
        _require_whole_groups(frames.shape[1])
        opening = 1 + TIME * (ENCODED_TOGETHER - 1)
        latents, before = [], None
        for part in (frames[:, :opening], *frames[:, opening:].split(TIME * ENCODED_TOGETHER, dim=1)):
            if part.shape[1]:
                video = part.to(self.vae.mean.device, self.vae.mean.dtype)
                latents.append(self.vae.encode(video, before))
                before = video[:, -1:]
        return torch.cat(latents, dim=1)


class TinyDecoderStream:
    """One video being decoded; it keeps the last latent frame."""

    def __init__(self, vae: TinyVAE) -> None:
        self._vae = vae
        self._before: Tensor | None = None

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """As ``DecoderStream.decode``."""
        latents = latents.to(self._vae.mean.device, self._vae.mean.dtype)
        frames = self._vae.decode(latents, self._before)
        self._before = latents[:, -1:]
        return frames
