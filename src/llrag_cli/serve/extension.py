"""What a run is to be when it is extended."""

from __future__ import annotations

from llrag_cli.runs.record import RunRecord
from llrag_cli.scenes.timeline import Timeline, next_shot


def extended(record: RunRecord, blocks: int, *, seconds: float, prompt: str | None, cut: bool) -> RunRecord:
    """The record of a run that has so many ``blocks``, with some seconds added, perhaps under another prompt."""
    config = record.config
    size = config.backbone.frames_per_block
    done = _until(record.timeline, blocks)
    stop = config.latent_frames(done.seconds + seconds) // size
    if prompt is None or (prompt == done.shots[-1].prompt and not cut):
        longer = done.lasting(stop)
    else:
        longer = done.with_shot(next_shot(done, prompt, start=blocks, stop=stop, cut=cut))
    return record.model_copy(update={"timeline": done, "latent_frames": done.latent_frames}).with_timeline(
        longer, seconds=done.seconds + seconds, status="interrupted", error=None, video_crc32=None
    )


def _until(timeline: Timeline, blocks: int) -> Timeline:
    """The shots of the first blocks."""
    shots = tuple(shot.until(min(shot.stop, blocks)) for shot in timeline.shots if shot.start < blocks)
    return Timeline.model_validate({**dict(timeline), "shots": shots})
