"""VBench-Long's split of a video into clips of two seconds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor


def clip_length(fps: float) -> int:
    """Frames of a clip: twice the whole frames of a second."""
    return max(1, int(fps)) * 2


def clips_of(frames: Iterable[Tensor], *, length: int) -> Iterator[Tensor]:
    """Stack frames [3, H, W] into clips [length, 3, H, W], in order; one clip is in memory at a time.

    The last, short one is extended backwards to full length, so it overlaps its neighbour; a video shorter than a
    clip is one clip.
    """
    recent: deque[Tensor] = deque(maxlen=length)
    count = 0
    for frame in frames:
        recent.append(frame)
        count += 1
        if count % length == 0:
            yield torch.stack(tuple(recent))
    if count % length:
        yield torch.stack(tuple(recent))
