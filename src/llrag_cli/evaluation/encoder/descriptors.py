"""Descriptors of frames: baselines of the retrieval encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.memory.history import average_pool
from llrag_cli.models.vae import Decoder

Descriptor = Callable[[Tensor], Tensor]  # the latent frames [F, C, H, W] of a video to [F, D]

PROJECTED = 256  # dimensions that preserve cosines to a few hundredths (Johnson and Lindenstrauss)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def plain_descriptors() -> dict[str, Descriptor]:
    """Descriptors that need no model."""
    return {"average pooling": average_pool, "random projection": random_projection}


def random_projection(latents: Tensor) -> Tensor:
    """Whole frames by a fixed Gaussian matrix: [F, C, H, W] to [F, 256]."""
    flat = latents.float().flatten(1)
    matrix = torch.randn(flat.shape[1], PROJECTED, generator=torch.Generator().manual_seed(0)) / PROJECTED**0.5
    return flat @ matrix.to(flat.device)


def vision_descriptor(name: str, decoder: StreamingDecoder) -> Descriptor:
    """Features of decoded frames by a frozen vision model of transformers on this machine, such as DINOv2.

    The last video frame of each latent frame is scaled to 224 pixels and normalised with ImageNet's statistics.
    """
    from transformers import AutoModel

    try:
        model: Any = AutoModel.from_pretrained(name, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise LlragError(
            f"there is no vision model `{name}` on this machine: {str(error).splitlines()[0]}",
            hint="give a folder with config.json and weights, or the name of a model in the Hugging Face cache",
        ) from None
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)

    @torch.no_grad()
    def describe(latents: Tensor) -> Tensor:
        stream, ratio = decoder.stream(), decoder.temporal_ratio
        rows = []
        for part in latents.split(16):
            frames = stream.decode(part[None])[0].cpu()
            frames = frames[(len(frames) - 1) % ratio :: ratio]  # [F, 3, H, W]
            pixels = F.interpolate(frames / 2 + 0.5, size=(224, 224), mode="bilinear", antialias=True)
            outputs = model(pixel_values=(pixels - mean) / std)
            pooled = getattr(outputs, "pooler_output", None)
            rows.append(pooled if pooled is not None else outputs.last_hidden_state.mean(dim=1))
        return torch.cat(rows)

    return describe


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
