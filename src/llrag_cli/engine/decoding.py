"""How the full VAE decodes: compiled in part, and in the memory layout that a trial on a GPU finds to be faster."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.trials import Choice, Compute
from llrag_cli.files.resources import out_of_memory
from llrag_cli.models.layouts import CONTIGUOUS, LAYOUTS, Layout
from llrag_cli.models.vae import Decoder, PlainDecoder

if TYPE_CHECKING:
    from llrag_cli.models.wan.vae import WanDecoder

# Thirty layers round one after the other, and each differs in its last bits: in bfloat16, frames of the two layouts
# differed by 0.018 with random weights, as each does from float32. On GPUs convolutions of float32 compute in TF32.
MEMORY_LAYOUTS = Choice[Layout]("layouts", LAYOUTS, {torch.float32: 5e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2})
FRAMES = 2  # latent frames of a trial: the first of a video gives one frame, the second all that a later one gives


@dataclass(frozen=True)
class DecoderShape:
    """What is decoded, latent frames of height x width, and by what."""

    height: int
    width: int
    channels: int  # of latents
    base_dim: int  # channels of the widest picture
    compiled: bool
    dtype: str


def prepare_decoder(decoder: Decoder, device: torch.device, how: Execution, config: RunConfig) -> None:
    """Apply the execution settings to a decoder on its device; Wan's full VAE alone can be run in several ways.

    The layout `auto` is found by trial on a GPU, and contiguous on a CPU.
    """
    if isinstance(decoder, PlainDecoder):
        return
    from llrag_cli.models.wan.vae import WanDecoder  # the embedded model need not wait for it

    assert isinstance(decoder, WanDecoder)
    if how.compile:
        decoder.compile()
    if how.decoder_layout != "auto":
        decoder.set_layout(how.decoder_layout)
    elif device.type == "cuda":
        choose_layout(decoder, device, config, repeatable=not how.fast)


def choose_layout(decoder: WanDecoder, device: torch.device, config: RunConfig, *, repeatable: bool) -> None:
    """Have a decoder on a GPU use the fastest layout; contiguous if there is no memory for a trial."""
    weight = next(decoder.vae.parameters())
    shape = DecoderShape(
        height=config.backbone.height,
        width=config.backbone.width,
        channels=decoder.channels,
        base_dim=decoder.vae.config.base_dim,
        compiled=decoder.is_compiled,
        dtype=str(weight.dtype).removeprefix("torch."),
    )
    chosen: Layout = CONTIGUOUS
    try:
        prepare = partial(decoding_at, shape, device, decoder)
        chosen = MEMORY_LAYOUTS.fastest(shape, device, prepare, repeatable=repeatable)
    except RuntimeError as failure:
        if not out_of_memory(failure):
            raise
    finally:
        decoder.set_layout(chosen)


def decoding_at(shape: DecoderShape, device: torch.device, decoder: WanDecoder) -> Compute[Layout]:
    """The first frames of a video of random latents of a shape."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, FRAMES, shape.channels, shape.height, shape.width, generator=generator).to(device)

    def decode(layout: Layout) -> Tensor:
        if layout != decoder.layout:
            decoder.set_layout(layout)
        return decoder.stream().decode(latents)

    return decode
