"""What a run retrieved, as one HTML page and as JSON: statistics, shots, and the log of every block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from llrag_cli.evaluation.inspect import MemoryStats, describe, retrieved_by_shot, sources_of, time_in_source
from llrag_cli.files.html import data_url, render
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.runs.folder import BlockMemory, RunFolder
from llrag_cli.runs.record import RunRecord
from llrag_cli.scenes.replay import Replay
from llrag_cli.scenes.timeline import ReferenceSpan, ShotSpan, Timeline


def memory_json(record: RunRecord, blocks: Sequence[BlockMemory], stats: MemoryStats | None) -> dict[str, Any]:
    """Everything that the page says, as JSON values."""
    timeline = record.timeline
    counts = retrieved_by_shot(blocks, timeline)
    return {
        **({} if stats is None else asdict(stats)),
        "title": record.title,
        "shots": [
            {
                "name": shot.name,
                "kind": shot.kind,
                "prompt": shot.prompt,
                **_extent(timeline, shot),
                "may_remember": list(timeline.eligible(shot.start)),
                "sink": shot.sink,
                "retrieved": counts[shot.name],
            }
            for shot in timeline.shots
        ],
        "references": [
            {
                "name": reference.name,
                "path": str(reference.path),
                "prompt": reference.prompt,
                "pinned": reference.pinned,
                "latent_frames": reference.latent_frames,
                "first_frame": timeline.reference_frames[reference.name].start,
                "retrieved": sum(found.get(reference.name, 0) for found in counts.values()),
            }
            for reference in timeline.references
        ],
        "log": [
            {
                "block": block.frame // timeline.frames_per_block,
                "frame": block.frame,
                "seconds": record.config.second_of(block.frame),
                "shot": timeline.shot_of_frame(block.frame).name,
                "retrieved": [
                    {
                        "frame": frame,
                        "source": source,
                        "seconds": time_in_source(timeline, record.config, frame),
                        "cosine": cosine,
                    }
                    for frame, source, cosine in _retrieved(block, timeline)
                ],
            }
            for block in blocks
            if block.retrieved
        ],
    }


def _extent(timeline: Timeline, shot: ShotSpan) -> dict[str, Any]:
    """Where a shot lies: pairs of the first and the last, and times in seconds."""
    extent = timeline.extent(shot)
    return {
        "blocks": _first_and_last(extent.blocks),
        "latent_frames": _first_and_last(extent.latent_frames),
        "video_frames": _first_and_last(extent.video_frames),
        "start_seconds": extent.start_seconds,
        "end_seconds": extent.end_seconds,
    }


def _first_and_last(numbers: range) -> list[int]:
    return [numbers[0], numbers[-1]]


def _retrieved(block: BlockMemory, timeline: Timeline) -> Iterator[tuple[int, str, float]]:
    """Frame, source and cosine of each frame that a block retrieved."""
    return zip(block.retrieved, sources_of(block, timeline), block.similarities, strict=False)


def memory_page(
    folder: RunFolder,
    record: RunRecord,
    blocks: Sequence[BlockMemory],
    stats: MemoryStats | None,
    picture: bytes,
) -> str:
    """One HTML page, complete in itself: the statistics, the shots, the map, and what every block retrieved."""
    timeline = record.timeline
    scene = None if timeline.is_plain else _scene(record, blocks)
    beginning = [("prompt", record.prompt)] if scene is None else [("scene", summary(timeline))]
    return render(
        "memory.html",
        run=str(folder.path),
        title=record.title,
        rows=[
            *beginning,
            ("status", record.status),
            ("configuration", record.config.label),
            *describe(stats, timeline),
        ],
        picture=data_url(picture, "image/png"),
        scene=scene,
        blocks=[_log_row(record, block) for block in blocks if block.retrieved],
    )


def _log_row(record: RunRecord, block: BlockMemory) -> dict[str, Any]:
    """What one block retrieved, as a row of the page's log."""
    timeline, second_of = record.timeline, record.config.second_of
    if timeline.is_plain:
        retrieved = [f"{second_of(frame):.1f} s ({cosine:.3f})" for frame, _, cosine in _retrieved(block, timeline)]
        return {"time": f"{second_of(block.frame):.1f} s", "retrieved": retrieved}
    groups: dict[str, list[str]] = {}  # by source, the source of the most similar frame first
    for frame, source, cosine in _retrieved(block, timeline):
        groups.setdefault(source, []).append(f"{frame_label(record, frame)} ({cosine:.3f})")
    return {
        "time": f"{second_of(block.frame):.1f} s",
        "number": block.frame // timeline.frames_per_block,
        "shot": timeline.shot_of_frame(block.frame).name,
        "groups": groups,
    }


def frame_label(record: RunRecord, frame: int) -> str:
    """Number and time of a frame; of a frame of a reference, its number there, from 0."""
    if frame >= 0:
        return f"frame {frame} at {record.config.second_of(frame):.1f} s"
    timeline = record.timeline
    span = timeline.reference_frames[timeline.name_of(frame)]
    return f"frame {frame - span.start} of {len(span)}" if len(span) > 1 else "its one frame"


def _scene(record: RunRecord, blocks: Sequence[BlockMemory]) -> dict[str, Any]:
    """The tables of shots and references."""
    timeline = record.timeline
    counts = retrieved_by_shot(blocks, timeline)
    used = {name for found in counts.values() for name in found}
    columns = [name for name in (*timeline.reference_frames, *counts) if name in used]
    return {
        "shots": [_shot_row(record, shot, len(blocks)) for shot in timeline.shots],
        "references": [
            {
                "name": reference.name,
                "path": str(reference.path),
                "prompt": reference.prompt,
                "use": _use(timeline, reference),
                "latent_frames": reference.latent_frames,
            }
            for reference in timeline.references
        ],
        "columns": columns,
        "counts": [
            {"shot": shot, "counts": [found.get(name, 0) for name in columns], "total": sum(found.values())}
            for shot, found in counts.items()
        ],
        "totals": [sum(found.get(name, 0) for found in counts.values()) for name in columns],
    }


def _use(timeline: Timeline, reference: ReferenceSpan) -> str:
    """How shots use a reference."""
    allowed = [shot.name for shot in timeline.shots if reference.name in timeline.eligible_references(shot.start)]
    shots = "all shots" if len(allowed) == len(timeline.shots) else ", ".join(allowed) or "no shot"
    return f"pinned: attended by every block of {shots}" if reference.pinned else f"may be retrieved by {shots}"


def _shot_row(record: RunRecord, shot: ShotSpan, written: int) -> dict[str, Any]:
    """A shot in the words of the page, of a run that has ``written`` blocks."""
    timeline = record.timeline
    extent = timeline.extent(shot)
    done = min(max(0, written - shot.start), len(shot.blocks))
    return {
        "name": shot.name,
        "kind": shot.kind,
        "prompt": shot.prompt,
        "times": f"{extent.start_seconds:.2f} – {extent.end_seconds:.2f} s",
        "blocks": numbers(extent.blocks),
        "latent_frames": numbers(extent.latent_frames),
        "video_frames": numbers(extent.video_frames),
        "remembers": remembers(record, shot),
        "sink": "its own first frames" if shot.sink == shot.name else f"of {shot.sink}",
        "missing": "" if done == len(shot.blocks) else f"{done} of {len(shot.blocks)} blocks are generated",
    }


def numbers(span: range) -> str:
    """First and last number: ``3-17``, or one number."""
    return f"{span[0]}-{span[-1]}" if len(span) > 1 else f"{span[0]}"


def remembers(record: RunRecord, shot: ShotSpan) -> str:
    """What a shot may retrieve, in words."""
    timeline, memory = record.timeline, record.config.memory
    if not isinstance(memory, RetrievalMemory) or not memory.retrieves:
        return "nothing: the memory strategy does not retrieve"
    if Replay(memory, timeline).places(shot) <= 0:
        return "nothing: pinned references take all places"
    pinned = {reference.name for reference in timeline.references if reference.pinned}
    others = [name for name in timeline.eligible(shot.start) if name not in pinned and name != shot.name]
    return "everything before it" if shot.remember == "all" and shot.start else ", ".join([*others, "itself"])


def summary(timeline: Timeline) -> str:
    """Shots and references in numbers: ``4 shots: 1 switch, 2 cuts; 1 reference``."""
    kinds = [shot.kind for shot in timeline.shots]
    switches, cuts = kinds.count("switch"), kinds.count("cut")
    changes = [_plural(switches, "switch", "switches")] * bool(switches) + [_plural(cuts, "cut", "cuts")] * bool(cuts)
    text = _plural(len(timeline.shots), "shot", "shots") + (": " + ", ".join(changes) if changes else "")
    count = len(timeline.references)
    return text + ("; " + _plural(count, "reference", "references") if count else "")


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
