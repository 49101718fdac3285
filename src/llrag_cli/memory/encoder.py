"""The retrieval encoder: a convolutional autoencoder over single latent frames.

Generation uses the encoder only; the decoder is for the reconstruction loss. Module names match the
released checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from llrag_cli.errors import LlragError
from llrag_cli.files.guarded import UnreadableError, shortened
from llrag_cli.files.records import parse_as
from llrag_cli.files.tensors import load_strictly, read_file, read_metadata, require_finite

PROBE = 16  # height and width of the noise that a loaded encoder is tried on


class EncoderConfig(BaseModel):
    """Sizes of a retrieval autoencoder; other keys of a checkpoint's config (training settings) are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    in_channels: int = Field(default=16, gt=0, le=4096, description="channels of a latent frame")
    spatial_h: int = Field(default=60, gt=0, le=4096, description="height of a latent frame")
    spatial_w: int = Field(default=104, gt=0, le=4096, description="width of a latent frame")
    latent_dim: int = Field(default=1024, gt=0, le=2**16, description="size of an embedding")
    hidden_dims: tuple[Annotated[int, Field(gt=0, le=2**13)], ...] = Field(
        default=(64, 128, 256), min_length=1, max_length=12, description="features of each stage"
    )


def _group_norm(channels: int) -> nn.GroupNorm:
    groups = next(count for count in (32, 16, 8, 4, 1) if channels % count == 0)
    return nn.GroupNorm(groups, channels, eps=1e-5)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            _group_norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            _group_norm(channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.block(x)
        return x + changed


class LatentEncoder(nn.Module):
    """Latent frames [N, C, H, W] to embeddings [N, D], not normalised."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = config.in_channels
        for hidden in config.hidden_dims:
            down = nn.Conv2d(channels, hidden, 3, stride=2, padding=1)
            stages += [down, _group_norm(hidden), nn.SiLU(), _Residual(hidden)]
            channels = hidden
        self.conv_stack = nn.Sequential(*stages)
        self.final_norm = nn.Sequential(_group_norm(channels), nn.SiLU())
        self.fc = nn.Linear(channels, config.latent_dim)

    def forward(self, latents: Tensor) -> Tensor:
        embedding: Tensor = self.fc(self.final_norm(self.conv_stack(latents)).mean(dim=(2, 3)))
        return embedding


class LatentDecoder(nn.Module):
    """Embeddings [N, D] back to latent frames [N, C, H, W]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.size = (config.spatial_h, config.spatial_w)
        scale = 2 ** len(config.hidden_dims)
        self.bottom = (config.hidden_dims[-1], *(math.ceil(side / scale) for side in self.size))
        self.fc = nn.Sequential(nn.Linear(config.latent_dim, math.prod(self.bottom)), nn.SiLU())
        stages: list[nn.Module] = []
        falling = config.hidden_dims[::-1]
        for before, after in pairwise(falling):
            up = nn.Upsample(scale_factor=2, mode="nearest")
            stages += [up, nn.Conv2d(before, after, 3, padding=1), _group_norm(after), nn.SiLU(), _Residual(after)]
        self.upsample_stack = nn.Sequential(*stages)
        self.final = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(falling[-1], config.in_channels, 3, padding=1)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        grown: Tensor = self.final(self.upsample_stack(self.fc(embeddings).unflatten(1, self.bottom)))
        return grown[..., : self.size[0], : self.size[1]]


class LatentAutoencoder(nn.Module):
    """Encoder and decoder of latent frames; calling it returns unit-norm embeddings [N, D]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = LatentEncoder(config)
        self.decoder = LatentDecoder(config)

    def forward(self, latents: Tensor) -> Tensor:
        """Unit-norm embeddings [N, D] of latent frames [N, C, H, W], in the module's dtype."""
        weight = self.encoder.fc.weight
        return F.normalize(self.encoder(latents.to(weight.device, weight.dtype)), dim=-1)


def load_encoder(path: Path, *, device: torch.device | None = None) -> LatentAutoencoder:
    """Load a released checkpoint (``model`` and ``config``) or safetensors with the config in its metadata; strict."""
    if path.suffix == ".safetensors":
        content: Mapping[str, Any] = {"model": read_file(path), "config": _metadata_config(path)}
    else:
        content = read_file(path)
    hint = "expected the released retrieval encoder, or one trained by llrag"
    if not isinstance(content, Mapping) or "model" not in content or "config" not in content:
        raise LlragError(f"`{path}` is not a retrieval encoder: it lacks `model` or `config`", hint=hint)
    model = content["model"]
    if not isinstance(model, Mapping) or not all(isinstance(tensor, Tensor) for tensor in model.values()):
        raise LlragError(f"`{path}` is not a retrieval encoder: its `model` does not hold tensors", hint=hint)
    autoencoder = encoder_from(content["model"], content["config"], source=str(path))
    _require_keys(autoencoder, source=str(path))
    return autoencoder if device is None else autoencoder.to(device)


def embedding_size(path: Path) -> int:
    """Length of the keys of an encoder file; only the header of safetensors is read."""
    if path.suffix == ".safetensors":
        return int(_metadata_config(path)["latent_dim"])
    return load_encoder(path).config.latent_dim


def encoder_from(state: Mapping[str, Tensor], config: Mapping[str, Any], *, source: str) -> LatentAutoencoder:
    """Build an autoencoder in float32 from its tensors and configuration."""
    try:
        sizes = EncoderConfig.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        raise LlragError(
            f"`{source}` has a bad `{'.'.join(map(str, first['loc'])) or 'type'}` in its config: "
            f"{shortened(first['msg'].lower())}",
            hint="the file is damaged or of another kind",
        ) from None
    with torch.device("meta"):  # nothing is allocated before the shapes are known to be right
        autoencoder = LatentAutoencoder(sizes).eval().requires_grad_(requires_grad=False)
    load_strictly(autoencoder, dict(state), source=source)
    autoencoder.float()  # float64 may overflow, and float8 has no comparisons
    require_finite(autoencoder.state_dict(), source=source)
    return autoencoder


@torch.no_grad()
def _require_keys(autoencoder: LatentAutoencoder, *, source: str) -> None:
    """Raise an error unless the encoder makes a key of noise: finite weights may still overflow or cancel out."""
    config = autoencoder.config
    height, width = min(config.spatial_h, PROBE), min(config.spatial_w, PROBE)
    noise = torch.randn(1, config.in_channels, height, width, generator=torch.Generator().manual_seed(0))
    key = autoencoder(noise)
    if not key.isfinite().all() or not key.any():
        raise LlragError(f"`{source}` makes no keys: its output is not finite, or zero", hint="use another encoder")


def _metadata_config(path: Path) -> dict[str, Any]:
    config = read_metadata(path).get("config")
    if config is None:
        raise LlragError(
            f"`{path}` has no `config` in its metadata", hint="it is no retrieval encoder, or was not written by llrag"
        )
    try:
        return parse_as(EncoderConfig, config, strict=False).model_dump()
    except UnreadableError as error:
        raise LlragError(
            f"`{path}` has a bad `config` in its metadata: {error.reason}",
            hint="the file is damaged or of another kind",
        ) from None
