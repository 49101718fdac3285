"""How a backbone is run: offloading, attention backends, compilation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llrag_cli.cache.sharing import Sharing
from llrag_cli.config import RunConfig
from llrag_cli.engine.attention import attend, choose_attention
from llrag_cli.errors import AttentionError, UsageError
from llrag_cli.models.attention import AUTO, require_attention
from llrag_cli.models.layouts import LayoutOrAuto
from llrag_cli.models.wan.graphs import CUDAGraphs
from llrag_cli.models.wan.transformer import WanBackbone


@dataclass(frozen=True)
class Execution:
    """How a backbone is run, which does not change what it computes but for rounding."""

    offload: bool = False  # weights stay on the host and come to the device layer by layer
    attention: str = AUTO  # one of diffusers' attention backends; on a GPU, `auto` is found by trial
    compile: bool = False  # torch.compile over the repeated blocks, and over norms of the full VAE's decoder
    decoder_layout: LayoutOrAuto = "auto"  # of the full VAE
    sharing: Sharing = "none"  # buffers of what a block attends to that layers share, and gather in every pass
    cuda_graphs: bool = False  # denoising passes are recorded, and started by the host as one
    batch: int = 1  # videos generated together, for which `auto` chooses the attention backend
    fast: bool = False  # on a GPU: kernels that may give other bytes each time


def new_backbone(transformer: Any, device: torch.device, how: Execution, config: RunConfig) -> WanBackbone:
    """Move the transformer of a configuration to its device, apply the execution settings, and wrap it."""
    backbone = WanBackbone(transformer)
    backbone.sharing = how.sharing
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
    if how.attention == AUTO:
        choose_attention(backbone, config, repeatable=not how.fast, batch=how.batch)
    else:
        set_attention(backbone, how.attention)
    if how.compile:
        backbone.compile(config.backbone.frames_per_block)
    if how.cuda_graphs:
        backbone.recorder = CUDAGraphs(device)
    return backbone


def require_graphs(how: Execution, device: torch.device) -> None:
    """Raise ``UsageError`` if passes are to be recorded as CUDA graphs and cannot be, run in this way on a device."""
    if not how.cuda_graphs:
        return
    if device.type != "cuda":
        raise UsageError("CUDA graphs need a GPU", hint="generate without them on a CPU")
    if how.offload or how.sharing != "none":
        what = "weights that are copied to the GPU in every pass" if how.offload else "a buffer that all layers share"
        raise UsageError(f"CUDA graphs cannot record passes with {what}", hint="choose one of the two")


def set_attention(backbone: WanBackbone, name: str) -> None:
    """Have diffusers compute a backbone's attention with one of its backends; one that fails here is an error.

    It is tried once. diffusers' own setter would change the backend of every model in the process.
    """
    head_dim = backbone.transformer.config.attention_head_dim
    require_working(name, device=backbone.device, dtype=backbone.dtype, head_dim=head_dim)
    backbone.set_attention(name)


def require_working(name: str, *, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Raise an error unless an attention backend works here, with heads of so many channels; `auto` always does."""
    require_attention(name)
    if name == AUTO:
        return
    trial = torch.zeros(1, 2, 1, head_dim, device=device, dtype=dtype)
    try:
        attend(name, trial, trial, trial)
    except Exception as error:  # every backend fails in its own way
        raise AttentionError(name, (str(error) or type(error).__name__).splitlines()[0]) from error
