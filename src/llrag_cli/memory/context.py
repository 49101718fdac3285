"""The context of a block under each kind of memory: past frames, and the rotary time of each.

Pure functions of frame counts and of what was retrieved. Frames are counted from the start of the video; a slot is
an index into a window of ``window`` frames that is filled from the left.
"""

from __future__ import annotations

from collections.abc import Sequence

from llrag_cli.cache.context import Context
from llrag_cli.memory.strategies import MemoryConfig, RetrievalMemory


def sliding_window(*, start: int, block: int, window: int | None, sink: int) -> Context:
    """The native window: the sink and the newest frames, all at their absolute time.

    The block covers frames start .. start + block - 1 and counts towards the window; ``None`` is
    a window without end.
    """
    oldest = 0 if window is None else max(0, start + block - (window - sink))
    kept = (*range(min(sink, start)), *range(min(max(sink, oldest), start), start))
    return Context(shared=kept, shared_times=kept, start_time=start)


def retrieval_window(
    *, start: int, block: int, window: int, sink: int, count: int, retrieved: Sequence[Sequence[int]] = ()
) -> Context:
    """LongLive-RAG's window: sink, ``retrieved`` frames [B][<= count], and a local part shortened by ``count``.

    Time is relative: a frame has the time of its slot in the window (the block is in the last slots once the window
    is full), and all retrieved frames have time 0, as the first frame of the sink. The local part is shorter by
    ``count`` frames always, whether or not as many were retrieved.
    """
    start_time = min(start, window - block)
    local = window - sink - count  # frames, the block's own included
    first = max(start + block - local, sink, start - start_time + sink)
    frames = (*range(min(sink, start)), *range(min(first, start), start))
    times = tuple(frame if frame < sink else frame - start + start_time for frame in frames)
    rows = tuple(tuple(row) for row in retrieved)
    sunk = min(max(sink - start, 0), block)  # frames of the block itself that belong to the sink
    return Context(
        shared=frames,
        shared_times=times,
        start_time=start_time,
        retrieved=rows if rows and rows[0] else (),
        hidden=range(sunk, max(sunk, block - max(local, 0))),
    )


def context_of(memory: MemoryConfig, *, start: int, block: int, retrieved: Sequence[Sequence[int]] = ()) -> Context:
    """The context of the block at ``start`` under a memory configuration; ``retrieved`` is [B][K]."""
    if not isinstance(memory, RetrievalMemory):
        return sliding_window(start=start, block=block, window=memory.window, sink=memory.sink)
    return retrieval_window(
        start=start,
        block=block,
        window=memory.window,
        sink=memory.sink,
        count=memory.retrieved,
        retrieved=retrieved,
    )


def retrievable(*, start: int, window: int, sink: int, guard: int) -> range:
    """Frames that a block at ``start`` may retrieve: those evicted before it, less the newest ``guard``."""
    evicted = max(0, start - window)
    return range(sink, sink + max(0, evicted - guard))
