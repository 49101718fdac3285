"""Descriptors of frames: baselines of the retrieval encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.memory.history import average_pool

Descriptor = Callable[[Tensor], Tensor]  # the latent frames [F, C, H, W] of a video to [F, D]

PROJECTED = 256  # dimensions that preserve cosines to a few hundredths (Johnson and Lindenstrauss)


def plain_descriptors() -> dict[str, Descriptor]:
    """Descriptors that need no model."""
    return {"average pooling": average_pool, "random projection": random_projection}


def random_projection(latents: Tensor) -> Tensor:
    """Whole frames by a fixed Gaussian matrix: [F, C, H, W] to [F, 256]."""
    flat = latents.float().flatten(1)
    matrix = torch.randn(flat.shape[1], PROJECTED, generator=torch.Generator().manual_seed(0)) / PROJECTED**0.5
    return flat @ matrix.to(flat.device)


def encoder_descriptor(path: Path, shape: tuple[int, int, int]) -> Descriptor:
    """A retrieval encoder, which must take latents of ``shape``."""
    from llrag_cli.memory.encoder import load_encoder

    encoder = load_encoder(path)
    takes = (encoder.config.in_channels, encoder.config.spatial_h, encoder.config.spatial_w)
    if takes != shape:
        raise LlragError(
            f"`{path}` takes latents of {'x'.join(map(str, takes))}, these are {'x'.join(map(str, shape))}",
            hint="use latents of the backbone it was trained for",
        )

    @torch.no_grad()
    def describe(latents: Tensor) -> Tensor:
        return torch.cat([encoder(part) for part in latents.split(256)])

    return describe
