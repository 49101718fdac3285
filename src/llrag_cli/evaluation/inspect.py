"""How a run used its memory, in numbers and words. ``memory_map`` draws it, ``memory_page`` writes its page."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from llrag_cli.config import RunConfig
from llrag_cli.errors import DamagedRunError
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.runs.folder import BlockMemory, RunFolder
from llrag_cli.runs.record import RunRecord
from llrag_cli.scenes.replay import Replay
from llrag_cli.scenes.timeline import Timeline, one_shot


@dataclass(frozen=True)
class MemoryStats:
    """How a run used its memory; times in seconds."""

    blocks: int
    retrieving: int  # blocks that retrieved anything
    coverage: float  # share of the frames that could be retrieved, that were
    repeated: float  # share of retrieved frames that the block before retrieved too
    most_retrieved: tuple[tuple[float, int], ...]  # times of the frames retrieved most often, and how often
    most_retrieved_sources: tuple[str, ...]  # shot or reference of each; times in references count from their start
    lookback: float | None  # median time between a block and the frames it retrieved; None: those of references only
    near_guard: float  # share of retrieved frames within 8 frames of the newest that a block's window has dropped
    similarity: float  # median cosine
    by_source: dict[str, float]  # share of retrieved frames by shot and reference, largest first


def memory_stats(
    blocks: Sequence[BlockMemory], config: RunConfig, timeline: Timeline | None = None
) -> MemoryStats | None:
    """Statistics of a memory log; None if nothing was retrieved. Without a timeline, it is that of one prompt."""
    memory, size = config.memory, config.backbone.frames_per_block
    retrieving = [block for block in blocks if block.retrieved]
    if not retrieving or not isinstance(memory, RetrievalMemory):
        return None
    timeline = timeline or one_shot("", config, latent_frames=blocks[-1].frame + size)
    replay = Replay(memory, timeline)
    counts = Counter(frame for block in retrieving for frame in block.retrieved)
    repeated = [
        frame in known
        for before, block in itertools.pairwise(blocks)
        if (known := {*before.retrieved})
        for frame in block.retrieved
    ]
    near = [
        sum(replay.near_guard(block.frame // size, frame) for frame in block.retrieved) / len(block.retrieved)
        for block in retrieving
    ]
    lookback = [
        config.second_of(block.frame - frame) for block in retrieving for frame in block.retrieved if frame >= 0
    ]
    similarities = [value for block in retrieving for value in block.similarities]
    most = counts.most_common(5)
    return MemoryStats(
        blocks=len(blocks),
        retrieving=len(retrieving),
        coverage=len(counts) / max(1, len(candidates_of_run(replay, retrieving))),
        repeated=sum(repeated) / len(repeated) if repeated else 0.0,
        most_retrieved=tuple((time_in_source(timeline, config, frame), count) for frame, count in most),
        most_retrieved_sources=tuple(timeline.name_of(frame) for frame, _ in most),
        lookback=float(torch.tensor(lookback).median()) if lookback else None,
        near_guard=sum(near) / len(near),
        similarity=float(torch.tensor(similarities).median()),
        by_source=shares_by_source(retrieving, timeline),
    )


def example_blocks(blocks: Sequence[BlockMemory], count: int = 6) -> list[BlockMemory]:
    """Blocks to show: spread evenly over those that retrieved something, the last one among them."""
    retrieving = [block for block in blocks if block.retrieved]
    count = min(count, len(retrieving))
    return [retrieving[(index + 1) * len(retrieving) // count - 1] for index in range(count)]


def candidates_of_run(replay: Replay, blocks: Sequence[BlockMemory]) -> set[int]:
    """The frames that at least one of the blocks could retrieve. Within a shot, a block has those of all before it."""
    size = replay.timeline.frames_per_block
    last = {replay.timeline.shot_at(block.frame // size).name: block.frame // size for block in blocks}
    return {frame for number in last.values() for frame in replay.candidates(number)}


def sources_of(block: BlockMemory, timeline: Timeline) -> tuple[str, ...]:
    """The shot or reference of each frame that a block retrieved: as recorded, or in a plain video, by its number."""
    return block.sources or tuple(timeline.name_of(frame) for frame in block.retrieved)


def shares_by_source(blocks: Sequence[BlockMemory], timeline: Timeline) -> dict[str, float]:
    """Shares of retrieved frames by shot and reference, largest first."""
    counts = Counter(source for block in blocks for source in sources_of(block, timeline))
    return {name: count / counts.total() for name, count in counts.most_common()}


def retrieved_by_shot(blocks: Sequence[BlockMemory], timeline: Timeline) -> dict[str, dict[str, int]]:
    """How many frames the blocks of each shot retrieved from each shot and reference; all shots are there."""
    counts: dict[str, Counter[str]] = {shot.name: Counter() for shot in timeline.shots}
    for block in blocks:
        if block.retrieved:
            counts[timeline.shot_of_frame(block.frame).name].update(sources_of(block, timeline))
    names = [*timeline.reference_frames, *counts]
    return {shot: {name: found[name] for name in names if found[name]} for shot, found in counts.items()}


def time_in_source(timeline: Timeline, config: RunConfig, frame: int) -> float:
    """The time of a frame in the video; of a frame of a reference, from the beginning of the reference."""
    if frame >= 0:
        return config.second_of(frame)
    return config.second_of(frame - timeline.reference_frames[timeline.name_of(frame)].start)


def require_known_frames(folder: RunFolder, record: RunRecord, blocks: Sequence[BlockMemory]) -> None:
    """Raise ``DamagedRunError`` if the memory log has frames or sources that the timeline of the record has not."""
    timeline = record.timeline
    names = {*timeline.reference_frames, *(shot.name for shot in timeline.shots)}
    most = record.config.memory.retrieved if isinstance(record.config.memory, RetrievalMemory) else 0
    for number, block in enumerate(blocks):
        known = range(-timeline.reference_count, block.frame)
        if number >= record.blocks or block.frame != number * timeline.frames_per_block:
            raise DamagedRunError(folder.memory, f"line {number + 1} has frames that the run has not")
        if any(frame not in known for frame in block.retrieved):
            raise DamagedRunError(folder.memory, f"line {number + 1} has frames that the run has not, or not yet")
        if len(block.retrieved) > most:
            raise DamagedRunError(folder.memory, f"line {number + 1} has more frames than a block retrieves")
        if block.sources and (len(block.sources) != len(block.retrieved) or not {*block.sources} <= names):
            raise DamagedRunError(folder.memory, f"line {number + 1}: `sources` does not fit `retrieved`")
    if record.is_complete and len(blocks) != record.blocks:
        raise DamagedRunError(folder.memory, f"it has {len(blocks)} of {record.blocks} blocks")


def describe(stats: MemoryStats | None, timeline: Timeline | None = None) -> list[tuple[str, str]]:
    """The statistics of a run in words, each with its name; in a video of several shots, with the names of those."""
    if stats is None:
        return [("retrieved", "nothing: the plain sliding window, or a video too short for frames to leave it")]
    scene = None if timeline is None or timeline.is_plain else timeline
    newest = "candidates" if scene is None else "frames that have left window and guard"
    rows = [
        ("blocks", f"{stats.blocks}, of which {stats.retrieving} retrieved frames"),
        ("coverage", f"{100 * stats.coverage:.0f} % of the candidate frames were retrieved at least once"),
        ("repeated", f"{100 * stats.repeated:.0f} % of retrieved frames were retrieved by the previous block too"),
        ("most retrieved", ", ".join(_most_retrieved(stats, scene))),
        ("lookback", _lookback(stats, scene)),
        ("near the guard", f"{100 * stats.near_guard:.0f} % of retrieved frames are among the 8 newest {newest}"),
        ("cosine", f"{stats.similarity:.3f} (median)"),
    ]
    if scene is not None:
        rows.insert(1, ("retrieved from", _shares(stats)))
    return rows


def _shares(stats: MemoryStats, *, most: int = 8) -> str:
    """The sources with the largest shares, and how many others there are."""
    shares = [f"{100 * share:.0f} % {name}" for name, share in stats.by_source.items()]
    others = [f"and from {len(shares) - most} others"] if len(shares) > most else []
    return ", ".join([*shares[:most], *others])


def _lookback(stats: MemoryStats, scene: Timeline | None) -> str:
    if stats.lookback is None:
        return "none: all retrieved frames are of references"
    note = ", without the frames of references" if scene is not None and scene.references else ""
    return f"{stats.lookback:.1f} s (median{note})"


def _most_retrieved(stats: MemoryStats, scene: Timeline | None) -> Iterator[str]:
    """The frames retrieved most often, with the shot or reference of each if there are several."""
    references = {} if scene is None else scene.reference_frames
    for (time, count), source in zip(stats.most_retrieved, stats.most_retrieved_sources, strict=True):
        if source in references:
            yield (
                f"{source} at {time:.1f} s ({count} times)"
                if len(references[source]) > 1
                else f"{source} ({count} times)"
            )
        elif scene is not None:
            yield f"{time:.1f} s in {source} ({count} times)"
        else:
            yield f"{time:.1f} s ({count} times)"
