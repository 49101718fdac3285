"""VBench-Long's split of a video into clips of two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def clip_length(fps: float) -> int:
    """Frames of a clip: twice the whole frames of a second."""
    return max(1, int(fps)) * 2


def clips_of(frames: Iterable[Tensor], *, length: int) -> Iterator[Tensor]:
    """Group frames [3, H, W] into clips [length, 3, H, W], in order; the current and the previous clip are in memory.

    The last, short one is extended backwards to full length, so it overlaps its neighbour; a video shorter than a
    clip is one clip.
    """
    before: Tensor | None = None
    clip: Tensor | None = None
    count = 0
    for frame in frames:
        if clip is None or count % length == 0:
            before, clip = clip, frame.new_empty(length, *frame.shape)
        clip[count % length] = frame
        count += 1
        if count % length == 0:
            yield clip
    rest = count % length
    if clip is not None and rest:
        yield clip[:rest] if before is None else torch.cat((before[rest:], clip[:rest]))
