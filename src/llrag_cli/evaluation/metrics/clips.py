"""VBench-Long's split of a video into clips of two seconds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def clip_length(fps: float) -> int:
    """Frames of a clip: twice the whole frames of a second."""
    return max(1, int(fps)) * 2


@dataclass(frozen=True)
class Part:
    """A clip of a video, or what ends it inside of one."""

    frames: Tensor  # [T, 3, H, W]
    end: int  # video frames up to its last one
    is_whole: bool  # not extended backwards


def clips_of(frames: Iterable[Tensor], *, length: int, ends: Sequence[int] = ()) -> Iterator[Part]:
    """Group frames [3, H, W] into clips [length, 3, H, W], in order; the current and the previous clip are in memory.

    The last, short one is extended backwards to full length, so it overlaps its neighbour; a video shorter than a
    clip is one clip. The beginnings of the video that end after so many frames as ``ends`` says have such a last
    clip too, in its place among the others; the clip after it starts where it would without.
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
            yield Part(clip, count, is_whole=True)
        elif count in ends:
            yield _last(before, clip, count, length)
    if clip is not None and count % length and count not in ends:
        yield _last(before, clip, count, length)


def _last(before: Tensor | None, clip: Tensor, count: int, length: int) -> Part:
    rest = count % length
    frames = clip[:rest].clone() if before is None else torch.cat((before[rest:], clip[:rest]))
    return Part(frames, count, is_whole=False)
