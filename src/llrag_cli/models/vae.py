"""What the rest of llrag knows of a VAE: weights that are shared, and a stream for each video that is decoded."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from llrag_cli.models.layouts import CONTIGUOUS, Layout


class DecoderStream(Protocol):
    """Turns the latents of one video, or of one batch of videos, into frames; it keeps what it needs of the past."""

    def decode(self, latents: Tensor) -> Tensor:
        """Frames [B, t, 3, H, W] in [-1, 1] of the next latents [B, T, C, h, w].

        The first latent frame of a video gives one frame, each later one ``temporal_ratio``, however they are grouped.
        """
        ...


def stream_after_cut(decoder: Decoder, latents: Tensor) -> DecoderStream:
    """A stream for latents [B, T, C, h, w] that follow a cut.

    It knows nothing of the picture before, and is as if the first of them had been shown already, so that each latent
    frame gives ``temporal_ratio`` frames, as everywhere but at the start of a video.
    """
    stream = decoder.stream()
    stream.decode(latents[:, :1])
    return stream


class Decoder(Protocol):
    """The weights of a VAE, which hold nothing of any video.

    Streams of one decoder may be used in turns, and on several threads.
    """

    @property
    def spatial_ratio(self) -> int:
        """Pixels along a side of each latent pixel."""
        ...

    @property
    def temporal_ratio(self) -> int:
        """Frames of each latent frame but the first, which gives one."""
        ...

    @property
    def reach(self) -> int:
        """Latent frames back that a frame depends on."""
        ...

    @property
    def layout(self) -> Layout:
        """Memory layout of its convolutions."""
        ...

    @property
    def is_compiled(self) -> bool:
        """Whether parts of it run compiled."""
        ...

    def stream(self) -> DecoderStream:
        """Start to decode a video."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Latents [B, n, C, h, w] of a video [B, temporal_ratio (n - 1) + 1, 3, H, W] in [-1, 1]."""
        ...


class PlainDecoder:
    """Of a decoder that is run in one way only."""

    layout = CONTIGUOUS
    is_compiled = False
