"""Which attention backend of diffusers is the fastest here, found by trial at the shape that a block has.

All candidates compute the same function, and their forward passes are deterministic by design.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.engine.trials import Choice, Compute
from llrag_cli.models.attention import NATIVE
from llrag_cli.models.wan.transformer import WanBackbone

# Those that keep full precision and load no code from a hub: torch's own, cuDNN's, FlashAttention 3 and 2.
BACKENDS = Choice[str](
    "attention",
    (NATIVE, "_native_cudnn", "_flash_3", "flash"),
    {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3},
)
OPEN_WINDOW = 12  # latent frames attended to, for a trial, by a memory without a window


@dataclass(frozen=True)
class AttentionShape:
    """What a block's attention computes: queries [batch, queries, heads, D] to keys [batch, keys, heads, D]."""

    batch: int
    queries: int
    keys: int
    heads: int
    head_dim: int
    dtype: str

    @classmethod
    def of(cls, config: RunConfig, backbone: WanBackbone, *, batch: int) -> AttentionShape:
        """The shape of a block of a batch of videos whose window is full."""
        rows, columns = backbone.grid(config.backbone.height, config.backbone.width)
        sizes = backbone.transformer.config
        return cls(
            batch=batch,
            queries=config.backbone.frames_per_block * rows * columns,
            keys=(config.memory.window or OPEN_WINDOW) * rows * columns,
            heads=sizes.num_attention_heads,
            head_dim=sizes.attention_head_dim,
            dtype=str(backbone.dtype).removeprefix("torch."),
        )


def choose_attention(backbone: WanBackbone, config: RunConfig, *, repeatable: bool, batch: int) -> None:
    """Have a backbone on a GPU compute attention with the fastest backend for a ``batch`` of so many videos.

    On a CPU, and where diffusers is told which one to use by its environment variable, nothing changes. ``repeatable``
    is that of ``Choice.fastest``.
    """
    if backbone.device.type != "cuda" or "DIFFUSERS_ATTN_BACKEND" in os.environ:
        return
    shape, device = AttentionShape.of(config, backbone, batch=batch), backbone.device
    name = BACKENDS.fastest(shape, device, partial(attention_at, shape, device), repeatable=repeatable)
    backbone.set_attention(name)


def attention_at(shape: AttentionShape, device: torch.device) -> Compute[str]:
    """Attention of random queries, keys and values of a shape."""
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (
        torch.randn(shape.batch, tokens, shape.heads, shape.head_dim, generator=generator, dtype=torch.float32).to(
            device, getattr(torch, shape.dtype)
        )
        for tokens in (shape.queries, shape.keys, shape.keys)
    )
    return lambda name: attend(name, query, keys, values)


def attend(backend: str, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention [B, L, heads, D] as one of diffusers' backends computes it."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    attended: Tensor = dispatch_attention_fn(query, keys, values, backend=AttentionBackendName(backend))
    return attended
