"""How a backbone is run: offloading, attention backends, compilation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llrag_cli.errors import AttentionError, UsageError, closest
from llrag_cli.models.wan.transformer import WanBackbone


@dataclass(frozen=True)
class Execution:
    """How a backbone is run, which does not change what it computes but for rounding."""

    offload: bool = False  # weights stay on the host and come to the device layer by layer
    attention: str | None = None  # one of diffusers' attention backends
    compile: bool = False  # torch.compile over the repeated blocks
    one_buffer: bool = False  # layers share the buffer of what a block attends to, and gather it in every pass
    fast: bool = False  # on a GPU: kernels that may give other bytes each time


def new_backbone(transformer: Any, device: torch.device, how: Execution) -> WanBackbone:
    """Move a transformer to its device, apply the execution settings, and wrap it as a backbone."""
    backbone = WanBackbone(transformer)
    backbone.one_buffer = how.one_buffer
    if how.offload:
        transformer.enable_group_offload(
            onload_device=device,
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",  # prompt and context are read outside of a block's forward
            use_stream=device.type == "cuda",
        )
        backbone.set_offloaded(device)
    else:
        transformer.to(device)
    if how.attention is not None:
        set_attention(backbone, how.attention)
    if how.compile:
        backbone.compile()
    return backbone


def require_attention(name: str) -> None:
    """Raise an error unless diffusers knows an attention backend."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [backend.value for backend in AttentionBackendName]
    if name not in known:
        raise UsageError(f"unknown attention backend `{name}`", hint=closest(name, known))


def set_attention(backbone: WanBackbone, name: str) -> None:
    """Have diffusers compute a backbone's attention with one of its backends; one that fails here is an error.

    It is tried once. diffusers' own setter would change the backend of every model in the process.
    """
    require_attention(name)
    try:
        backbone.set_attention(name)
    except Exception as error:  # every backend fails in its own way
        raise AttentionError(name, str(error).splitlines()[0]) from error
