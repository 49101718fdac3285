"""Wan's VAE: diffusers' ``AutoencoderKLWan``, decoded as a stream without seams."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor

from llrag_cli.errors import LlragError, UnsupportedModelError
from llrag_cli.files.tensors import State, load_strictly, read_state, require_axes
from llrag_cli.models.compiled_calls import CompiledCalls
from llrag_cli.models.layouts import CONTIGUOUS, Layout
from llrag_cli.models.measuring import PeakMemory
from llrag_cli.models.wan.base import WanBase, reading
from llrag_cli.models.wan.fused_norms import fuse_norms

_HINT = "use the VAE of Wan2.1-T2V-1.3B"
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by axes of a convolution's weight


class WanDecoder:
    """An ``AutoencoderKLWan``, whose own temporal caches are left alone: each stream has one of its own."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        require_vae(vae.config, source="VAE")
        shape = (1, -1, 1, 1, 1)
        self.vae = vae.eval().requires_grad_(requires_grad=False)
        self.channels: int = vae.config.z_dim
        self.spatial_ratio: int = 2 ** len(vae.config.temperal_downsample)
        self.temporal_ratio: int = 2 ** sum(vae.config.temperal_downsample)
        self.reach = decoder_reach(vae)
        device = next(vae.parameters()).device
        self._mean = torch.tensor(vae.config.latents_mean).view(shape).to(device)
        self._std = torch.tensor(vae.config.latents_std).view(shape).to(device)
        self.layout = CONTIGUOUS
        self._compiled: CompiledCalls | None = None

    @property
    def is_compiled(self) -> bool:
        """Whether norms and activations of its decoder half run compiled."""
        return self._compiled is not None

    def compile(self, **how: Any) -> None:
        """Compile norms and activations of the decoder half, as ``torch.compile`` does; the first frame takes long."""
        fuse_norms(self.vae.decoder, **how)
        self._compiled = CompiledCalls()

    def set_layout(self, layout: Layout) -> None:
        """Keep the weights of the decoder half in a layout; what they compute has it too. Numbers stay the same."""
        for weight in self.vae.decoder.parameters():
            last = _CHANNELS_LAST.get(weight.ndim, torch.contiguous_format)
            weight.data = weight.data.contiguous(
                memory_format=torch.contiguous_format if layout == CONTIGUOUS else last
            )
        self.layout = layout

    def stream(self) -> WanDecoderStream:
        """As ``Decoder.stream``."""
        return WanDecoderStream(self)

    def encode(self, frames: Tensor) -> Tensor:
        """As ``Decoder.encode``."""
        return encode_video(self.vae, frames)

    def hidden(self, latents: Tensor) -> Tensor:
        """What the decoder reads, [B, C, T, h, w], for normalised latents [B, T, C, h, w]."""
        weight = next(self.vae.parameters())
        normalised = latents.transpose(1, 2).to(weight.device, torch.float32)
        raw = (normalised * self._std + self._mean).to(weight.dtype)
        hidden: Tensor = self.vae.post_quant_conv(raw)
        return hidden

    def frames(self, hidden: Tensor, cache: list[Any], *, index: int) -> Tensor:
        """Frames [B, 3, t, H, W] of what the decoder reads of latent frame ``index``, the next of a video's cache."""
        if self._compiled is None:
            return decode_frame(self.vae, hidden, cache, first=index == 0)
        with self._compiled.call((self.layout, hidden.shape, min(index, 2))):  # from the third on all are alike
            return decode_frame(self.vae, hidden, cache, first=index == 0)


class WanDecoderStream:
    """One video being decoded; it keeps the last frames that each causal convolution saw."""

    def __init__(self, decoder: WanDecoder) -> None:
        self._decoder = decoder
        self._cache = empty_cache(decoder.vae.decoder)
        self._decoded = 0  # latent frames

    @property
    def past(self) -> list[Tensor]:
        """What is kept of the frames before."""
        return [part for part in self._cache if isinstance(part, Tensor)]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """As ``DecoderStream.decode``."""
        decoded = []
        for latent in latents.split(1, dim=1):
            frame = self._decoder.hidden(latent)  # several at once would round differently
            decoded.append(self._decoder.frames(frame, self._cache, index=self._decoded))
            self._decoded += 1
        return torch.cat(decoded, dim=2).transpose(1, 2).float().clamp(-1, 1)


def empty_cache(half: torch.nn.Module) -> list[Any]:
    """An entry for each causal convolution of an encoder or decoder, which fills it."""
    return [None] * sum(isinstance(module, WanCausalConv3d) for module in half.modules())


def decode_frame(vae: AutoencoderKLWan, hidden: Tensor, cache: list[Any], *, first: bool) -> Tensor:
    """Frames [B, 3, t, H, W] of one latent frame [B, C, 1, h, w], the next of the video whose ``cache`` this is."""
    opens = {"first_chunk": True} if first else {}
    frames: Tensor = vae.decoder(hidden, feat_cache=cache, feat_idx=[0], **opens)
    return frames


def require_vae(config: Mapping[str, Any], *, source: str) -> None:
    """Raise an error unless the configuration of an ``AutoencoderKLWan`` is of the kind of Wan2.1's."""
    reason = None
    if config.get("is_residual"):
        reason = "its blocks are residual (`is_residual`), as in the VAE of Wan2.2"
    elif config.get("patch_size") not in (None, 1):
        reason = f"it folds patches of {config['patch_size']} pixels, as the VAE of Wan2.2 does"
    elif config.get("in_channels", 3) != 3 or config.get("out_channels", 3) != 3:
        reason = f"its frames have {config['in_channels']} and {config['out_channels']} channels, not 3"
    elif tuple(config.get("temperal_downsample", (False, True, True))) != (False, True, True):
        reason = "its latents are not 8 times smaller in space and 4 times in time"
    elif "latents_mean" in config and len(config["latents_mean"]) != config["z_dim"]:
        reason = f"it has means for {len(config['latents_mean'])} channels of latents that have {config['z_dim']}"
    if reason is not None:
        raise UnsupportedModelError(source, reason, hint=_HINT)


def load_vae(base: WanBase, dtype: torch.dtype) -> AutoencoderKLWan:
    """The VAE of a folder, in a dtype."""
    if base.original:
        vae: AutoencoderKLWan = wan_vae_from(read_state(base.vae, model="Wan's VAE"), source=str(base.vae)).to(dtype)
        return vae
    require_vae(base.vae_config(), source=str(base.vae))
    with reading(base.vae, kind="a VAE"):
        return AutoencoderKLWan.from_pretrained(base.vae, torch_dtype=dtype, local_files_only=True)


@cache
def decoder_bytes(
    vae_folder: Path | None, height: int, width: int, dtype: torch.dtype, *, base_dim: int = 96
) -> tuple[int, int]:
    """Bytes of a VAE's weights, and of what it holds at most while it decodes a latent frame.

    It decodes on the meta device, which computes shapes only. It is that of a folder in Diffusers format, or Wan's own
    with ``base_dim`` channels.
    """
    with torch.device("meta"):
        if vae_folder is None:
            vae = AutoencoderKLWan(base_dim=base_dim)
        else:
            vae = AutoencoderKLWan.from_config(AutoencoderKLWan.load_config(str(vae_folder)))
        for parameter in vae.parameters():
            parameter.data = parameter.data.to(dtype)
        decoder = WanDecoder(vae)
        stream, latent = decoder.stream(), torch.empty(1, 1, decoder.channels, height, width)
        for _ in range(2):  # until it keeps all that it keeps of earlier frames
            stream.decode(latent)
        with PeakMemory() as memory:
            memory.add(stream.past)
            stream.decode(latent)
    weights = sum(parameter.numel() for parameter in vae.parameters())
    return weights * dtype.itemsize, memory.peak


def decoder_reach(vae: AutoencoderKLWan) -> int:
    """Latent frames back that a decoded frame can depend on, by what its causal convolutions see of the past."""
    reach, rate = 0.0, 1  # rate: frames for each latent frame
    decoder = vae.decoder
    for part in (decoder.conv_in, decoder.mid_block, *decoder.up_blocks, decoder.conv_out):
        for name, module in part.named_modules():
            if isinstance(module, WanCausalConv3d):
                reach += (module.kernel_size[0] - 1) / rate
                if name.endswith("time_conv"):  # it doubles the frames
                    rate *= 2
    return math.ceil(reach)


@torch.no_grad()
def encode_video(vae: AutoencoderKLWan, frames: Tensor) -> Tensor:
    """Normalised latents [B, n, C, h, w] (posterior mean) of frames [B, 4(n-1)+1, 3, H, W] in [-1, 1].

    As ``AutoencoderKLWan.encode``, with a cache of its own; only the frames of one latent frame are on the device.
    """
    ratio = 2 ** sum(vae.config.temperal_downsample)
    if (frames.shape[1] - 1) % ratio:
        raise ValueError(f"a video of {frames.shape[1]} frames is not {ratio}(n-1)+1 long")
    weight = next(vae.parameters())
    cache = empty_cache(vae.encoder)
    hidden = []
    for index in range(1 + (frames.shape[1] - 1) // ratio):
        group = frames[:, max(0, ratio * (index - 1) + 1) : ratio * index + 1].transpose(1, 2)  # [B, 3, t, H, W]
        hidden.append(vae.encoder(group.to(weight.device, weight.dtype), feat_cache=cache, feat_idx=[0]))
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    raw = vae.quant_conv(torch.cat(hidden, dim=2)).chunk(2, dim=1)[0]  # mean, without log-variance
    latents: Tensor = ((raw - mean.to(raw)) / std.to(raw)).transpose(1, 2)
    return latents


def wan_vae_from(state: Mapping[str, Tensor], *, source: str, **sizes: Any) -> AutoencoderKLWan:
    """An ``AutoencoderKLWan`` from the original checkpoint's tensors; its width is read from them.

    ``sizes`` are further arguments of the class, where they differ from the released model's.
    """
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    require_axes(state, {"decoder.head.2.weight": 5, "conv2.weight": 5}, source=source, model="Wan's VAE")
    colours, width = state["decoder.head.2.weight"].shape[:2]
    channels = state["conv2.weight"].shape[0]
    if colours != 3:
        reason = f"its frames have {colours} channels, not 3, as in the VAE of Wan2.2"
        raise UnsupportedModelError(source, reason, hint=_HINT)
    vae = AutoencoderKLWan(base_dim=width, z_dim=channels, **sizes)
    try:
        converted: State = convert_wan_vae_to_diffusers(dict(state))
    except (ValueError, LookupError, AttributeError):  # names that it takes apart
        raise LlragError(
            f"`{source}` has tensors under unknown names", hint="these are not the weights of Wan's VAE"
        ) from None
    load_strictly(vae, {name: tensor.float() for name, tensor in converted.items()}, source=source)
    return vae
