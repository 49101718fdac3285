"""Metrics of pixels, without a model. Frames are [T, 3, H, W] in [0, 1]; results in 0..255 say so."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 8  # of each colour in a joint histogram
TOGETHER = 1  # frames computed at once: small tensors stay in the CPU cache and do not fragment the heap


def flicker(frames: Tensor) -> float | None:
    """VBench's temporal flickering: 1 - the mean absolute difference of adjacent frames; None for one frame."""
    if len(frames) < 2:
        return None
    pairs = zip(frames[1:].split(TOGETHER), frames[:-1].split(TOGETHER), strict=True)
    changes = torch.cat([(after - before).abs().mean(dim=(1, 2, 3)) for after, before in pairs])
    return float(1 - changes.mean())


def chroma_noise(frames: Tensor, *, sigma: float = 2.0) -> float:
    """RMS of what a Gaussian of ``sigma`` pixels removes from Cb and Cr (BT.601), in 0..255.

    Grows as colours break up, which is the first sign of drift in autoregressive video.
    """
    squares = []
    for part in frames.split(TOGETHER):
        red, green, blue = part.unbind(1)
        luma = 0.299 * red + 0.587 * green + 0.114 * blue
        chroma = torch.stack(((blue - luma) / 1.772, (red - luma) / 1.402), dim=1)  # [t, 2, H, W]
        squares.append((chroma - blurred(chroma, sigma)).square().mean(dim=(1, 2, 3)))
    return float(255 * torch.cat(squares).mean().sqrt())


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images [T, C, H, W] blurred by a Gaussian, edges repeated."""
    reach = min(round(4 * sigma), min(images.shape[2:]) - 1)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1.0) / sigma) ** 2)
    weights: list[float] = (kernel / kernel.sum()).tolist()
    for axis, pad in ((3, (reach, reach, 0, 0)), (2, (0, 0, reach, reach))):
        padded, size = F.pad(images, pad, mode="replicate"), images.shape[axis]
        images = weights[reach] * padded.narrow(axis, reach, size)
        for tap in range(reach):  # sums of shifted images: on a CPU four times as fast as a convolution of one channel
            images.add_(padded.narrow(axis, tap, size), alpha=weights[tap])
            images.add_(padded.narrow(axis, 2 * reach - tap, size), alpha=weights[tap])
    return images


def colorfulness(frames: Tensor) -> float:
    """Hasler and Suesstrunk (2003), the mean over frames, on the scale of 0..255: 0 is gray, 60 and more is vivid."""
    values = []
    for part in frames.split(TOGETHER):
        red, green, blue = (255 * part).unbind(1)
        opponents = torch.stack((red - green, (red + green) / 2 - blue), dim=1).flatten(2)  # [t, 2, H*W]
        spread = opponents.std(dim=2, correction=0).norm(dim=1)
        values.append(spread + 0.3 * opponents.mean(dim=2).norm(dim=1))
    return float(torch.cat(values).mean())


def histogram(frames: Tensor) -> Tensor:
    """The joint histogram of RGB over all pixels, 8 bins a colour: [512], sum 1."""
    counts = torch.zeros(BINS**3, dtype=torch.int64)
    for part in frames.split(TOGETHER):
        red, green, blue = (part * BINS).int().clamp(0, BINS - 1).unbind(1)
        counts += torch.bincount((red * BINS * BINS + green * BINS + blue).flatten(), minlength=BINS**3)
    return counts / counts.sum()


def overlap(one: Tensor, other: Tensor) -> float:
    """Intersection of two histograms, in 0..1."""
    return float(torch.minimum(one, other).sum())
