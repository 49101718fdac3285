"""Latents to pixels, block by block: one decoder interface over Wan's VAE and the embedded one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from torch import Tensor

from llrag_cli.models.embedded.vae import TinyVAE
from llrag_cli.models.wan.checkpoints import State, load_strictly


class DecoderStream(Protocol):
    def decode(self, latents: Tensor) -> Tensor: ...


class Decoder(Protocol):
    spatial_ratio: int
    reach: int

    def stream(self) -> DecoderStream: ...
    def encode(self, frames: Tensor) -> Tensor: ...


class StreamingDecoder(Protocol):
    """Turns the next latent frames of one video into its next frames, remembering what it must."""

    ratio: int  # pixels along a side for each latent pixel
    reach: int  # latent frames back that a frame depends on

    def decode(self, latents: Tensor) -> Tensor:
        """Frames [B, t, 3, H, W] in [-1, 1] of the next latents [B, T, C, h, w].

        The first latent frame of a video gives one frame, each later one four, however they are grouped.
        """
        ...

    def reset(self) -> None:
        """Forget; the next latents open a new video."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Latents [B, n, C, h, w] of frames [B, 4(n-1)+1, 3, H, W] in [-1, 1]; forgets as ``reset`` does."""
        ...


class TinyDecoder:
    """The embedded VAE, streaming: it remembers one latent frame."""

    ratio = 8
    reach = 1

    def __init__(self, vae: TinyVAE) -> None:
        self.vae = vae.eval().requires_grad_(requires_grad=False)
        self._before: Tensor | None = None

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """As ``StreamingDecoder.decode``."""
        latents = latents.to(self.vae.mean.device, self.vae.mean.dtype)
        frames = self.vae.decode(latents, self._before)
        self._before = latents[:, -1:]
        return frames

    def reset(self) -> None:
        """As ``StreamingDecoder.reset``."""
        self._before = None

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """As ``StreamingDecoder.encode``."""
        self.reset()
        return self.vae.encode(frames.to(self.vae.mean.device, self.vae.mean.dtype))


class WanDecoder:
    """diffusers' ``AutoencoderKLWan``, its temporal cache kept between calls, so there is no seam anywhere."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae.eval().requires_grad_(requires_grad=False)
        shape = (1, -1, 1, 1, 1)
        self.ratio: int = 2 ** len(vae.config.temperal_downsample)
        self.reach = decoder_reach(vae)
        self._mean = torch.tensor(vae.config.latents_mean).view(shape)
        self._std = torch.tensor(vae.config.latents_std).view(shape)
        self.reset()

    def reset(self) -> None:
        """As ``StreamingDecoder.reset``."""
        self.vae.clear_cache()
        self._opened = False

    def encode(self, frames: Tensor) -> Tensor:
        """As ``StreamingDecoder.encode``."""
        weight = next(self.vae.parameters())
        latents = encode_video(self.vae, frames.to(weight.device, weight.dtype))
        self.reset()
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """As ``StreamingDecoder.decode``."""
        weight = next(self.vae.parameters())
        normalised = latents.transpose(1, 2).to(weight.device, torch.float32)  # [B, C, T, h, w]
        raw = (normalised * self._std.to(weight.device) + self._mean.to(weight.device)).to(weight.dtype)
        hidden = self.vae.post_quant_conv(raw)
        decoded = []
        for index in range(hidden.shape[2]):
            self.vae._conv_idx = [0]  # the decoder walks its cache from the start for each latent frame
            opens = {"first_chunk": True} if not self._opened else {}
            decoded.append(
                self.vae.decoder(
                    hidden[:, :, index : index + 1],
                    feat_cache=self.vae._feat_map,
                    feat_idx=self.vae._conv_idx,
                    **opens,
                )
            )
            self._opened = True
        return torch.cat(decoded, dim=2).transpose(1, 2).float().clamp(-1, 1)


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
    """Normalised latents [B, n, C, h, w] (posterior mean) of frames [B, T, 3, H, W] in [-1, 1]."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    raw = vae.encode(frames.transpose(1, 2)).latent_dist.mode()
    latents: Tensor = ((raw - mean.to(raw)) / std.to(raw)).transpose(1, 2)
    return latents


def wan_vae_from(state: Mapping[str, Tensor], *, source: str, **sizes: Any) -> AutoencoderKLWan:
    """An ``AutoencoderKLWan`` from the original checkpoint's tensors; its width is read from them.

    ``sizes`` are further arguments of the class, where they differ from the released model's.
    """
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    width = state["decoder.head.2.weight"].shape[1]
    channels = state["conv2.weight"].shape[0]
    vae = AutoencoderKLWan(base_dim=width, z_dim=channels, **sizes)
    converted: State = convert_wan_vae_to_diffusers(dict(state))
    load_strictly(vae, {name: tensor.float() for name, tensor in converted.items()}, source=source)
    return vae
