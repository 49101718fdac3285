"""The context of a block under each kind of memory: past frames, and the rotary time of each.

Pure functions of frame counts and of what was retrieved. Frames are counted from the start of the video; a slot is
an index into a window of ``window`` frames that is filled from the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llrag_cli.cache.context import Context
from llrag_cli.memory.strategies import MemoryConfig, RetrievalMemory


def sliding_window(*, start: int, block: int, window: int | None, sink: int, sink_start: int = 0) -> Context:
    """The native window: the sink and the newest frames, all at their absolute time.

    The block covers frames start .. start + block - 1 and counts towards the window; ``None`` is unlimited. The sink
    is ``sink`` frames from ``sink_start`` on.
    """
    end = sink_start + sink
    oldest = 0 if window is None else max(0, start + block - (window - sink))
    kept = (*range(sink_start, min(end, start)), *range(min(max(end, oldest), start), start))
    return Context(shared=kept, shared_times=kept, start_time=start)


def retrieval_window(
    *,
    start: int,
    block: int,
    window: int,
    sink: int,
    count: int,
    retrieved: Sequence[Sequence[int]] = (),
    sink_start: int = 0,
) -> Context:
    """LongLive-RAG's window: sink, ``retrieved`` frames [B][<= count], and a local part shortened by ``count``.

    Time is relative: a frame has the time of its slot in the window (the block is in the last slots once the window
    is full), and all retrieved frames have time 0, as the first frame of the sink. The local part is shorter by
    ``count`` frames always, whether or not as many were retrieved. The sink is ``sink`` frames from ``sink_start`` on.
    """
    start_time = min(start, window - block)
    local = window - sink - count  # frames, the block's own included
    end = sink_start + sink
    first = max(start + block - local, end, start - start_time + sink)
    sunken = range(sink_start, min(end, start))
    frames = (*sunken, *range(min(first, start), start))
    times = tuple(frame - sink_start if frame in sunken else frame - start + start_time for frame in frames)
    rows = tuple(tuple(row) for row in retrieved)
    sunk = min(max(sink - start, 0), block)  # frames of the block itself that belong to the sink
    return Context(
        shared=frames,
        shared_times=times,
        start_time=start_time,
        retrieved=rows if rows and rows[0] else (),
        hidden=range(sunk, max(sunk, block - max(local, 0))),
    )


def context_of(
    memory: MemoryConfig, *, start: int, block: int, retrieved: Sequence[Sequence[int]] = (), sink_start: int = 0
) -> Context:
    """The context of the block at ``start`` under a memory configuration; ``retrieved`` is [B][K]."""
    if not isinstance(memory, RetrievalMemory):
        return sliding_window(start=start, block=block, window=memory.window, sink=memory.sink, sink_start=sink_start)
    return retrieval_window(
        start=start,
        block=block,
        window=memory.window,
        sink=memory.sink,
        count=memory.retrieved,
        retrieved=retrieved,
        sink_start=sink_start,
    )


@dataclass(frozen=True)
class Recache:
    """Which frames are computed again when the prompt changes, what they attend to, and where the sink is then."""

    first: int
    context: Context
    sink_start: int


def recache_of(memory: MemoryConfig, *, start: int, sink_start: int = 0) -> Recache | None:
    """What a change of the prompt before the block at ``start`` computes again; None for nothing.

    The rules are LongLive's. While the window starts at frame 0, all frames are computed again, the sink included.
    Later the sink either keeps its keys and values, and the frames after it attend to it (``keep``), or the oldest
    frames of the window become the sink (``renew``). Times are absolute, or with retrieval those of the slots of a
    full window, as in ``retrieval_window``.
    """
    if memory.recache == "none" or start == 0:
        return None
    oldest = 0 if memory.window is None else max(0, start - memory.window)
    relative = isinstance(memory, RetrievalMemory)
    if oldest == 0 or memory.recache == "renew":
        return Recache(oldest, Context((), (), 0 if relative else oldest), oldest)
    first, sink = oldest + memory.sink, tuple(range(sink_start, sink_start + memory.sink))
    times = tuple(range(memory.sink)) if relative else sink
    return Recache(first, Context(sink, times, memory.sink if relative else first), sink_start)


def retrievable(*, start: int, window: int, sink: int, guard: int) -> range:
    """Frames that a block at ``start`` may retrieve: those evicted before it, less the newest ``guard``.

    The sink is the first ``sink`` frames; if it was moved, its frames are in the range and are to be left out.
    """
    evicted = max(0, start - window)
    return range(sink, sink + max(0, evicted - guard))
