"""The context of a block under each kind of memory: past frames, and the rotary time of each.

Pure functions of frame counts and of what was retrieved. Frames are counted from the last cut (see ``Stretch``), in a
video without one from its start; a slot is an index into a window of ``window`` frames that is filled from the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from llrag_cli.cache.context import Context
from llrag_cli.memory.strategies import MemoryConfig, RetrievalMemory


@dataclass(frozen=True)
class Stretch:
    """Frames that follow each other without a cut, and the clock that they are counted by.

    A cut drops the window, and the clock starts again: a stretch is counted as a video of its own. If the cut keeps
    the sink, its ``lead`` frames come first, as frames 0 .. lead - 1, and those of the stretch follow; otherwise the
    first frames of the stretch are its sink. So a cut that keeps nothing is a new video, and a block never attends at a
    time that it could not have in a video without cuts.
    """

    origin: int = 0  # first frame of the stretch, counted from the start of the video
    lead: int = 0  # sink frames kept from before
    kept: int = 0  # the first of them, counted from the start of the video
    sink: int = 0  # first sink frame on the stretch's clock; more than 0 once a change of the prompt has moved the sink

    def time(self, frame: int) -> int:
        """A frame of the stretch on its clock."""
        return frame - self.origin + self.lead

    def frame(self, time: int) -> int:
        """The frame of the video that a time of the clock stands for."""
        return self.kept + time if time < self.lead else self.origin + time - self.lead

    @property
    def sink_start(self) -> int:
        """The first sink frame, counted from the start of the video."""
        return self.frame(self.sink)

    def cut(self, start: int, *, keep: int) -> Stretch:
        """The stretch that begins with a cut at frame ``start``, and keeps a sink of ``keep`` frames, or none."""
        lead = min(keep, self.time(start))  # there may not be that many yet
        return Stretch(start, lead, self.sink_start if lead else start)

    def with_sink(self, sink: int) -> Stretch:
        """The stretch after its sink was moved, to a time of the clock."""
        return replace(self, sink=sink)

    def in_video(self, context: Context) -> Context:
        """A context on the stretch's clock with its frames counted from the start of the video; times stay."""
        return replace(context, shared=tuple(self.frame(time) for time in context.shared))


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
    is full), and all retrieved frames have time 0, as the first frame of the sink (``retrieved_times`` has other
    rules). The local part is shorter by ``count`` frames always, whether or not as many were retrieved. The sink is
    ``sink`` frames from ``sink_start`` on.
    """
    start_time = min(start, window - block)
    local = window - sink - count  # frames, the block's own included
    end = sink_start + sink
    first = max(start + block - local, end, start - start_time + sink)
    sunken = range(sink_start, min(end, start))
    frames = (*sunken, *range(min(first, start), start))
    times = tuple(frame - sink_start if frame in sunken else frame - start + start_time for frame in frames)
    rows = tuple(tuple(row) for row in retrieved) if retrieved and retrieved[0] else ()
    sunk = min(max(sink - start, 0), block)  # frames of the block itself that belong to the sink
    return Context(
        shared=frames,
        shared_times=times,
        start_time=start_time,
        retrieved=rows,
        retrieved_times=tuple((0,) * len(row) for row in rows),
        hidden=range(sunk, max(sunk, block - max(local, 0))),
    )


def retrieved_times(
    memory: RetrievalMemory,
    retrieved: Sequence[Sequence[int]],
    *,
    start: int,
    block: int,
    start_time: int,
    since: int = 0,
) -> tuple[tuple[float, ...], ...]:
    """Rotary times [B][<= K] of retrieved frames, by the memory's rule (compared in Memory Forcing, arXiv 2610.11756).

    The block at ``start`` has the times from ``start_time`` on. Frames, retrieved ones too, are counted from the start
    of the video, the first one there is is ``since`` (below 0 with references). Between the last slot of the sink and
    the first of the local part, K slots are free once the window is full, and fewer, g, before that. The rules:

    - `collapsed`: all at 0, the time of the first frame of the sink (LongLive-RAG);
    - `ordered`: by rank, oldest first. The i-th frame is in the i-th free slot; if only g of K slots are free, they
      are i * g / K apart from the first of them;
    - `interpolated`: by when the frame was made. Frame ``since`` is in the first free slot, the oldest local frame in
      its own, and a frame between them at its share of the way; times are not whole numbers.

    So with the last two, retrieved frames come after the sink and before the local part, older before newer, and are
    at one time, that of the first local frame, if no slot is free.
    """
    if memory.times == "collapsed":
        return tuple((0,) * len(row) for row in retrieved)
    local = max(memory.window - memory.sink - memory.retrieved, 0)
    after_sink = min(memory.sink, start_time)
    first_local = max(after_sink, start_time + block - local)
    free = first_local - after_sink
    if memory.times == "ordered":
        step = min(1.0, free / memory.retrieved)
        return tuple(tuple(after_sink + step * sorted(row).index(frame) for frame in row) for row in retrieved)
    oldest = start - max(0, start_time - first_local)  # of the local part
    return tuple(tuple(after_sink + free * (frame - since) / (oldest - since) for frame in row) for row in retrieved)


def context_of(memory: MemoryConfig, *, start: int, block: int, sink_start: int = 0) -> Context:
    """The context of the block at ``start`` under a memory configuration, without retrieved frames."""
    if memory.window is None or not memory.relative_times:
        return sliding_window(start=start, block=block, window=memory.window, sink=memory.sink, sink_start=sink_start)
    return retrieval_window(
        start=start,
        block=block,
        window=memory.window,
        sink=memory.sink,
        count=memory.retrieved if isinstance(memory, RetrievalMemory) else 0,
        sink_start=sink_start,
    )


def leaving(memory: MemoryConfig, stretch: Stretch, *, start: int, block: int) -> range:
    """Frames that the block before the one at ``start``, a frame of the video, had in its window and this one has not.

    Those of the sink never leave. Frames are of the stretch, and counted from the start of the video.
    """
    if memory.window is None:
        return range(0)
    local, after_sink = memory.window - memory.sink, stretch.sink + memory.sink

    def oldest(time: int) -> int:
        return max(after_sink, min(time, time + block - local))

    time = stretch.time(start)
    return range(stretch.frame(oldest(time - block)), stretch.frame(oldest(time)))


def attended(
    memory: MemoryConfig,
    stretch: Stretch,
    *,
    start: int,
    block: int,
    retrieved: Sequence[Sequence[int]] = (),
    pinned: Sequence[int] = (),
    since: int = 0,
) -> Context:
    """The context of the block at ``start``, a frame of the video, with frames ``pinned`` that are always attended to.

    The first frame there is, of references or of the video, is ``since``. Pinned frames have time 0. With retrieval
    they take the place of retrieved frames, of which there are fewer; without, they shorten the window. So a block
    attends to as many frames as without them.
    """
    if pinned and not isinstance(memory, RetrievalMemory) and memory.window is not None:
        memory = memory.model_copy(update={"window": memory.window - len(pinned)})
    context = stretch.in_video(context_of(memory, start=stretch.time(start), block=block, sink_start=stretch.sink))
    rows: tuple[tuple[int, ...], ...] = ()
    times: tuple[tuple[float, ...], ...] = ()
    if isinstance(memory, RetrievalMemory) and retrieved and retrieved[0]:
        rows = tuple(tuple(row) for row in retrieved)
        times = retrieved_times(memory, rows, start=start, block=block, start_time=context.start_time, since=since)
    return replace(
        context,
        retrieved=rows,
        retrieved_times=times,
        shared=(*pinned, *context.shared),
        shared_times=(*(0 for _ in pinned), *context.shared_times),
    )


def commit_context(memory: MemoryConfig, stretch: Stretch, *, start: int, block: int) -> Context | None:
    """What the clean pass of the block at ``start``, a frame of the video, attends to under the memory's commit rule.

    None: what its denoising passes attend to (`full`). Otherwise the newest frames of the stretch, the block's own
    included: C of them (`recent`, Commit Forcing, github.com/Dwell-Jing/commit-forcing) or those of the block alone
    (`self`, ID-Forcing, arXiv 2610.03120). Frames of the sink are read like any others while they are among the
    newest, but not a sink that a cut has kept. Times are those of the window without retrieval: the block's are the
    same as in its denoising passes.
    """
    reach = memory.commit_reach(block)
    if reach is None:
        return None
    time = stretch.time(start)
    start_time = min(time, memory.window - block) if memory.window is not None and memory.relative_times else time
    frames = range(max(stretch.lead, time + block - reach), time)
    times = tuple(frame - time + start_time for frame in frames)
    return stretch.in_video(Context(shared=tuple(frames), shared_times=times, start_time=start_time))


RecacheRule = Literal["keep", "renew", "none"]


@dataclass(frozen=True)
class Recache:
    """Which frames are computed again when the prompt changes, what they attend to, and where the sink is then."""

    first: int
    context: Context
    sink_start: int


def recache_of(
    memory: MemoryConfig, *, start: int, sink_start: int = 0, lead: int = 0, rule: RecacheRule | None = None
) -> Recache | None:
    """What a change of the prompt before the block at ``start`` computes again; None for nothing.

    The rules are LongLive's; ``rule`` is one of them, by default the memory's. While the window starts at frame 0, all
    frames are computed again, the sink included. Later the sink either keeps its keys and values, and the frames after
    it attend to it (``keep``), or the oldest frames of the window become the sink (``renew``). Times are absolute, or
    with retrieval those of the slots of a full window, as in ``retrieval_window``. A sink of ``lead`` frames that a cut
    has kept is of another picture: it is never computed again.

    The pass leaves keys and values, so the memory's commit rule holds for it too: unless that is `full`, the frames
    do not attend to the sink, and all are computed again that a later clean pass can attend to.
    """
    rule = rule or memory.recache
    if rule == "none" or start == lead:
        return None
    oldest = 0 if memory.window is None else max(0, start - memory.window)
    relative = memory.relative_times
    reads_sink = memory.commit == "full"
    if rule == "renew":
        first = max(oldest, lead)
        return Recache(first, Context((), (), 0 if relative else first), first)
    if memory.window is None or memory.recent_frames is None or oldest == 0:
        kept = tuple(range(sink_start, lead)) if reads_sink else ()
        return Recache(lead, Context(kept, kept, lead), sink_start)
    sink = range(sink_start, sink_start + memory.sink)
    first = max(start - memory.recent_frames, sink.stop)
    start_time = memory.window - (start - first) if relative else first
    if not reads_sink:
        return Recache(first, Context((), (), start_time), sink_start)
    times = range(memory.sink) if relative else sink
    return Recache(first, Context(tuple(sink), tuple(times), start_time), sink_start)


def block_by_block(recache: Recache, *, stop: int, block: int) -> list[Recache]:
    """The frames of a recache, up to frame ``stop``, in blocks that each attend to themselves alone.

    Blocks are counted back from ``stop``; the first may be shorter.
    """
    first, time = recache.first, recache.context.start_time
    starts = [max(first, start) for start in range(stop - block, first - block, -block)][::-1]
    return [Recache(start, Context((), (), time + start - first), recache.sink_start) for start in starts]


def retrievable(*, start: int, window: int, sink: int, guard: int) -> range:
    """Frames that a block at ``start`` may retrieve: those evicted before it, less the newest ``guard``.

    The sink is the first ``sink`` frames; if it was moved, its frames are in the range and are to be left out.
    """
    evicted = max(0, start - window)
    return range(sink, sink + max(0, evicted - guard))


def evicted_until(memory: RetrievalMemory, stretch: Stretch, *, start: int) -> int:
    """The first frame of a stretch that the block at ``start`` has in its window or guards; both count in the video.

    Frames of the stretch before it are evicted, and candidates unless they belong to the sink.
    """
    pool = retrievable(start=stretch.time(start), window=memory.window, sink=memory.sink, guard=memory.guard)
    return stretch.frame(pool.stop) if pool else stretch.origin


def candidate_frames(
    memory: RetrievalMemory,
    stretch: Stretch,
    *,
    start: int,
    references: range = range(0),
    shot: int = 0,
    remembered: Sequence[range] | None = None,
) -> range | list[int]:
    """Frames that the block at ``start`` may choose from, rising; those of ``references`` have negative numbers.

    These are the evicted frames of its stretch, less the guard, and all frames before the last cut; of both, not the
    sink, and not what the block's shot, which begins at frame ``shot``, may not remember: what lies before it and is in
    none of the ranges ``remembered`` (None: all may be).
    """
    pool = retrievable(start=stretch.time(start), window=memory.window, sink=memory.sink, guard=memory.guard)
    if not references and stretch.origin == stretch.sink == 0 and remembered is None:
        return pool
    frames = [*references, *range(evicted_until(memory, stretch, start=start))]
    sink = range(stretch.sink_start, stretch.sink_start + memory.sink)
    return [
        frame
        for frame in frames
        if frame not in sink and (frame >= shot or remembered is None or any(frame in span for span in remembered))
    ]
