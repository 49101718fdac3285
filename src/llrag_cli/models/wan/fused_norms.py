"""Norm and activation of Wan's VAE as one compiled function.

The decoder applies about thirty pairs of them, mostly at the size of the video. Uncompiled, a pair is about ten kernels
that each read and write all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanDecoder3d, WanResidualBlock, WanRMS_norm
from torch import Tensor, nn

Pair = Callable[[Tensor, Tensor], Tensor]


def normalise_and_activate(x: Tensor, gamma: Tensor) -> Tensor:
    """``silu(norm(x))`` of a ``WanRMS_norm`` over channels: x [1, C, N], gamma [C, 1]. It is rounded once."""
    values = x.float()
    rms = values.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-12)  # of zeros: zeros
    return nn.functional.silu(values / rms * gamma).to(x.dtype)


def fuse_norms(decoder: WanDecoder3d, **how: Any) -> None:
    """Have a decoder compute each norm with the activation after it, compiled as ``torch.compile`` does.

    All pairs share one graph for a dtype and a memory layout, because sizes are not part of it. What is replaced has no
    weights, so names and contents of the state stay as they are.
    """
    compiled: Pair = torch.compile(normalise_and_activate, fullgraph=True, **how)
    for block in decoder.modules():
        if isinstance(block, WanResidualBlock):
            _replace(block, compiled, block.norm1, block.norm2)
    _replace(decoder, compiled, decoder.norm_out)


def _replace(owner: nn.Module, compiled: Pair, *norms: WanRMS_norm) -> None:
    """Let the norms of a module activate too, and its activation, which follows each of them, do nothing."""
    assert isinstance(owner.nonlinearity, nn.SiLU)
    owner.nonlinearity = nn.Identity()
    for norm in norms:
        assert norm.channel_first and norm.bias == 0
        norm.forward = lambda x, norm=norm: _apply(compiled, norm, x)


def _apply(compiled: Pair, norm: WanRMS_norm, x: Tensor) -> Tensor:
    """A pair on [B, C, T, H, W], video by video, so that the number of videos is no size of the graph."""
    gamma = _of_any_size(norm.gamma.flatten(1))
    made = [compiled(_of_any_size(video.flatten(2)), gamma).unflatten(2, x.shape[2:]) for video in x.split(1)]
    # a stride of the first axis, which compiled code leaves at anything, decides whether torch sees channels as last
    parts = [each.as_strided(each.shape, (each.numel(), *each.stride()[1:])) for each in made]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _of_any_size(tensor: Tensor) -> Tensor:
    """The same numbers; the compiler takes each size that is not 1 as variable, and knows of no tensor behind it."""
    own = tensor.data
    for dim in range(own.ndim):
        if own.shape[dim] != 1:
            torch._dynamo.maybe_mark_dynamic(own, dim)
    return own
