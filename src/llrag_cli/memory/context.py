"""Policies: which past frames a block attends to, and the rotary time each is seen at.

Each is a pure function of frame counts and of what was recalled. A frame is counted from the start of
the video; a slot is a place in a window of ``window`` frames that has been filled from the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """What one block attends to besides itself.

    ``recalled`` holds frames of each video of the batch, all rows equally long; ``shared`` frames are
    the same for all. Times are rotary frame positions; those of the block count up from ``start_time``.
    """

    shared: tuple[int, ...]
    shared_times: tuple[int, ...]
    start_time: int
    recalled: tuple[tuple[int, ...], ...] = ()
    recalled_time: int = 0
    hidden: range = range(0)  # frames of the block, counted from its first, that it does not attend to itself

    @property
    def recalled_count(self) -> int:
        """Frames recalled for each video of the batch."""
        return len(self.recalled[0]) if self.recalled else 0

    @property
    def frame_count(self) -> int:
        """Past frames attended to."""
        return len(self.shared) + self.recalled_count


def sliding_window(*, start: int, block: int, window: int | None, sink: int) -> Context:
    """The native window: the sink and the newest frames, all at their absolute time.

    The block covers frames start .. start + block - 1 and counts towards the window; ``None`` is
    a window without end.
    """
    oldest = 0 if window is None else max(0, start + block - (window - sink))
    kept = (*range(min(sink, start)), *range(min(max(sink, oldest), start), start))
    return Context(shared=kept, shared_times=kept, start_time=start)


def retrieval_window(
    *, start: int, block: int, window: int, sink: int, retrieved: int, recalled: Sequence[Sequence[int]] = ()
) -> Context:
    """LongLive-RAG's window: sink, recalled frames, and a local part shortened by ``retrieved``.

    Time is relative: a frame is seen at its slot in the window (the block in the last ones once the
    window is full), the recalled ones all at time 0, beside the first frame of the sink. The local
    part is shorter by ``retrieved`` frames always, whether or not as many were recalled.
    """
    start_time = min(start, window - block)
    local = window - sink - retrieved  # frames, the block's own included
    first = max(start + block - local, sink, start - start_time + sink)
    frames = (*range(min(sink, start)), *range(min(first, start), start))
    times = tuple(frame if frame < sink else frame - start + start_time for frame in frames)
    rows = tuple(tuple(row) for row in recalled)
    sunk = min(max(sink - start, 0), block)  # of the block's own frames: those that are the sink are seen as such
    return Context(
        shared=frames,
        shared_times=times,
        start_time=start_time,
        recalled=rows if rows and rows[0] else (),
        hidden=range(sunk, max(sunk, block - max(local, 0))),
    )


def recallable(*, start: int, window: int, sink: int, guard: int) -> range:
    """Frames a block that starts at ``start`` may recall: those evicted before it, less the newest ``guard``."""
    evicted = max(0, start - window)
    return range(sink, sink + max(0, evicted - guard))
