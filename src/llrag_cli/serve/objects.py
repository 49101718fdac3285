"""Videos as JSON: the fields of the OpenAI API, and llrag's own under ``llrag``."""

from __future__ import annotations

from typing import Any, Literal

from llrag_cli.config import RunConfig
from llrag_cli.runs.record import RunRecord
from llrag_cli.scenes.timeline import Timeline
from llrag_cli.serve.queue import Queue, Video, created_at

Status = Literal["queued", "running", "cancelled", "completed", "failed"]
OPENAI: dict[Status, str] = {
    "queued": "queued",
    "running": "in_progress",
    "cancelled": "failed",
    "completed": "completed",
    "failed": "failed",
}


def status_of(video: Video) -> Status:
    """How far a video is: its job says so while it has work to do, afterwards its run."""
    job, record = video.job, video.view.record
    if video.running:
        return "cancelled" if job is not None and job.wanted == "cancel" else "running"
    if job is not None and job.outcome is None:
        if job.wanted == "cancel":
            return "cancelled"
        return "running" if video.view.owner is not None else "queued"
    if job is not None and job.outcome == "failed":
        return "failed"
    if record is None:
        return "failed"
    if record.is_complete:
        return "completed"
    if video.view.owner is not None:
        return "running"
    return "failed" if record.status == "failed" else "cancelled"


def config_of(video: Video) -> RunConfig | None:
    """The configuration of a video, if it can be known."""
    if video.view.record is not None:
        return video.view.record.config
    return None if video.job is None else video.job.config


def timeline_of(video: Video) -> Timeline | None:
    """The shots of a video, if they can be known."""
    if video.view.record is not None:
        return video.view.record.timeline
    return video.planned


def is_over(video: Video) -> bool:
    """Whether nothing more will come, unless somebody asks for it."""
    return status_of(video) in ("completed", "cancelled", "failed") and not video.running


def video_object(queue: Queue, video: Video) -> dict[str, Any]:
    """A video as clients see it; its view is refreshed."""
    job, record = video.job, video.view.record
    config, timeline, status = config_of(video), timeline_of(video), status_of(video)
    done = len(video.view.blocks)
    paused = job is not None and job.wanted == "pause" and job.outcome is None
    shown = OPENAI[status]
    if paused and done:
        shown = "in_progress"
    total = timeline.blocks if timeline else 0
    progress = 100 if status == "completed" else min(99, 100 * done // total) if total else 0
    completed = None
    if is_over(video):
        completed = job.completed_at if job is not None and job.completed_at else video.view.changed_at
    return {
        "id": video.id,
        "object": "video",
        "model": config.name if config else "",
        "status": shown,
        "progress": progress,
        "created_at": int(created_at(video)),
        "completed_at": int(completed) if completed else None,
        "expires_at": None,
        "prompt": timeline.shots[0].prompt if timeline else "",
        "seconds": f"{timeline.seconds:g}" if timeline else "0",
        "size": _size(config),
        "error": _error(video, status),
        "remixed_from_video_id": job.remixed_from if job else None,
        "llrag": _own(queue, video, record, config, timeline, status, paused=paused),
    }


def _size(config: RunConfig | None) -> str:
    return f"{config.width * config.video.upscale}x{config.height * config.video.upscale}" if config else ""


def _error(video: Video, status: Status) -> dict[str, Any] | None:
    job, record = video.job, video.view.record
    if status == "cancelled":
        return {"code": "cancelled", "message": "the video was cancelled; what was generated is kept", "hint": ""}
    if status != "failed":
        return None
    if job is not None and job.error is not None:
        return job.error.model_dump()
    reason = record.error if record is not None and record.error else video.view.damage
    return {"code": "generation_failed", "message": reason or "the run cannot be read", "hint": ""}


def _own(
    queue: Queue,
    video: Video,
    record: RunRecord | None,
    config: RunConfig | None,
    timeline: Timeline | None,
    status: Status,
    *,
    paused: bool,
) -> dict[str, Any]:
    job, view = video.job, video.view
    done = len(view.blocks)
    frames = done * (timeline.frames_per_block if timeline else 0)
    group = job.group if job else None
    return {
        "run": str(video.folder.relative_to(queue.runs)),
        "title": (record.title if record else "") or (job.scene.title if job and job.scene else ""),
        "seed": record.seed if record else job.seed if job else None,
        "memory": config.memory.strategy if config else None,
        "status": status,
        "paused": paused,
        "position": queue.position(video),
        "fps": config.backbone.fps if config else None,
        "width": config.width * config.video.upscale if config else None,
        "height": config.height * config.video.upscale if config else None,
        "latent_frames": frames,
        "latent_frames_total": timeline.latent_frames if timeline else None,
        "frames_per_block": timeline.frames_per_block if timeline else None,
        "block": done,
        "blocks_total": timeline.blocks if timeline else None,
        "seconds_done": config.video_frames(frames) / config.backbone.fps if config and frames else 0.0,
        "shots": shots_of(timeline) if timeline else [],
        "references": [each.name for each in timeline.references] if timeline else [],
        "group": [each.id for each in queue.in_group(group)] if group else [],
        "take_of": group if job and job.kind == "takes" else None,
        "take": job.take if job else 1,
        "compare_of": group if job and job.kind == "comparison" else None,
        "picked": job.picked if job else False,
        "decoder": config.video.decoder if config else None,
        "segments": view.video_bytes > 0,
        "mime": f'video/mp4; codecs="{view.codecs}"' if view.codecs else None,
        "resumed_at": list(record.resumed_at) if record else [],
        "extendable": is_over(video) and done > 0,
    }


def shots_of(timeline: Timeline) -> list[dict[str, Any]]:
    """The shots of a timeline, in seconds."""
    shots = []
    for shot in timeline.shots:
        extent = timeline.extent(shot)
        shots.append(
            {
                "name": shot.name,
                "start": extent.start_seconds,
                "end": extent.end_seconds,
                "prompt": shot.prompt,
                "change": shot.kind,
            }
        )
    return shots
