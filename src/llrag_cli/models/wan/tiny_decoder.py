"""A small decoder for latents of Wan2.1's VAE: TAEW2.1 (Bohan, MIT), as a stream without seams.

It decodes a block in a fraction of the VAE's time, for previews. The released file holds an encoder and a decoder; the
decoder alone is read. Each of its residual blocks sees the frame before, so a frame depends on ``reach`` latent frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llrag_cli.files.tensors import State, load_strictly
from llrag_cli.models.vae import Decoder, PlainDecoder

CHANNELS = 16  # of a latent frame
PREFIX, ENCODER = "decoder.", "encoder."  # of names in the released file


@dataclass(frozen=True)
class Stage:
    """Residual blocks at one resolution, then twice the pixels along a side and ``frames`` as many frames."""

    width: int
    frames: int  # 1 or 2
    next_width: int


STAGES = (Stage(256, 1, 128), Stage(128, 2, 64), Stage(64, 2, 64))
BLOCKS = 3  # of a stage


class Squash(nn.Module):
    """Keeps latents in -3 .. 3, softly."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return 3 * torch.tanh(x / 3)


class PastBlock(nn.Module):
    """A residual block of three convolutions over a frame and the one before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        first, *others = (nn.Conv2d(channels, width, 3, padding=1) for channels in (2 * width, width, width))
        self.conv = nn.Sequential(first, *(part for conv in others for part in (nn.ReLU(), conv)))

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """Frames [N, width, h, w] of frames and their predecessors of that shape."""
        output: Tensor = nn.functional.relu(self.conv(torch.cat((x, before), dim=1)) + x)
        return output


class MoreFrames(nn.Module):
    """``ratio`` frames of each frame."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        self.ratio = ratio
        self.conv = nn.Conv2d(width, ratio * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Frames [N * ratio, width, h, w] of frames [N, width, h, w]."""
        frames: Tensor = self.conv(x).unflatten(1, (self.ratio, -1)).flatten(0, 1)
        return frames


def _layers() -> Iterator[nn.Module]:
    """The layers of the decoder; their positions are the numbers in the released file's names."""
    yield from (Squash(), nn.Conv2d(CHANNELS, STAGES[0].width, 3, padding=1), nn.ReLU())
    for stage in STAGES:
        yield from (PastBlock(stage.width) for _ in range(BLOCKS))
        yield from (nn.Upsample(scale_factor=2), MoreFrames(stage.width, stage.frames))
        yield nn.Conv2d(stage.width, stage.next_width, 3, padding=1, bias=False)
    yield from (nn.ReLU(), nn.Conv2d(STAGES[-1].next_width, 3, 3, padding=1))


class TinyWanNetwork(nn.Module):
    """The decoder's layers; ``forward`` decodes one latent frame and keeps what the next one needs in ``past``."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Sequential(*_layers())

    def forward(self, latent: Tensor, past: dict[int, Tensor]) -> Tensor:
        """Frames [B, 4, 3, 8h, 8w] of a latent frame [B, C, h, w]; ``past`` holds the last frame of each block."""
        batch, x = len(latent), latent
        for number, layer in enumerate(self.decoder):
            if isinstance(layer, PastBlock):
                frames = x.unflatten(0, (batch, -1))
                before = torch.cat((past.get(number, torch.zeros_like(frames[:, :1])), frames[:, :-1]), dim=1)
                past[number] = frames[:, -1:].clone()
                x = layer(x, before.flatten(0, 1))
            else:
                x = layer(x)
        return x.unflatten(0, (batch, -1))


class TinyWanDecoder(PlainDecoder):
    """As ``Decoder``; what it cannot do, to encode, is left to the VAE, which is loaded if that is asked for."""

    channels = CHANNELS
    spatial_ratio = 2 ** len(STAGES)
    temporal_ratio = math.prod(stage.frames for stage in STAGES)

    def __init__(self, network: TinyWanNetwork, vae: Callable[[], Decoder]) -> None:
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.reach = reach()
        self._vae = vae

    def stream(self) -> TinyWanStream:
        """As ``Decoder.stream``."""
        return TinyWanStream(self.network)

    def encode(self, frames: Tensor) -> Tensor:
        """As ``Decoder.encode``, by the VAE."""
        return self._vae().encode(frames)


class TinyWanStream:
    """One video being decoded, latent frame by latent frame."""

    def __init__(self, network: TinyWanNetwork) -> None:
        self._network = network
        self._past: dict[int, Tensor] = {}
        self._opened = False

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """As ``DecoderStream.decode``."""
        weight = next(self._network.parameters())
        decoded = []
        for latent in latents.to(weight.device, weight.dtype).unbind(dim=1):
            frames = self._network(latent, self._past)
            decoded.append(frames if self._opened else frames[:, -1:])  # the first three precede the video
            self._opened = True
        return (2 * torch.cat(decoded, dim=1).float() - 1).clamp(-1, 1)


def reach() -> int:
    """Latent frames back that a decoded frame can depend on: each block looks back by one of its frames."""
    back, rate = 0.0, 1
    for stage in STAGES:
        back += BLOCKS / rate
        rate *= stage.frames
    return math.ceil(back)


def tiny_network_from(state: Mapping[str, Tensor], *, source: str, dtype: torch.dtype) -> TinyWanNetwork:
    """The decoder from the tensors of the released file, in a dtype.

    Where the file has weights for more frames than a layer makes, those of the last are read, as its authors do.
    """
    with torch.device("meta"):
        network = TinyWanNetwork()
    made = {f"{PREFIX}{number}.conv.weight": layer for number, layer in enumerate(network.decoder)}
    own: State = {}
    for name, value in state.items():
        if name.startswith(ENCODER):
            continue
        layer = made.get(name)
        if isinstance(layer, MoreFrames) and value.ndim and len(value) > len(layer.conv.weight):
            value = value[-len(layer.conv.weight) :]
        own[name] = value.to(dtype) if value.is_floating_point() else value
    load_strictly(network, own, source=source)
    return network


def tiny_decoder_bytes(height: int, width: int, item: int) -> tuple[int, int]:
    """Bytes of the weights, and of what the largest layer and the frames that are kept take while it decodes."""
    sizes: list[int] = []

    def measure(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes.append(output.numel() + sum(each.numel() for each in inputs))

    past: dict[int, Tensor] = {}
    with torch.device("meta"):
        network = TinyWanNetwork()
        for module in network.modules():
            if not list(module.children()):
                module.register_forward_hook(measure)
        network(torch.empty(1, CHANNELS, height, width), past)
    weights = sum(parameter.numel() for parameter in network.parameters())
    kept = sum(value.numel() for value in past.values())
    return weights * item, (kept + 2 * max(sizes)) * item
