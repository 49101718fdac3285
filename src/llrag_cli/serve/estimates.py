"""What a video will take, before it is asked for: length, time, memory and disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llrag_cli.config import RunConfig
from llrag_cli.errors import LlragError
from llrag_cli.files.paths import weights_folder
from llrag_cli.files.resources import free_disk, free_memory
from llrag_cli.formatting import human
from llrag_cli.models.family import family_of
from llrag_cli.presets import load_config
from llrag_cli.scenes.needs import memory_needs
from llrag_cli.scenes.reading import scene_from_text
from llrag_cli.scenes.timeline import Timeline
from llrag_cli.serve.objects import shots_of
from llrag_cli.serve.plans import Fields, require_model
from llrag_cli.serve.problems import ApiError
from llrag_cli.serve.queue import Video
from llrag_cli.serve.settings import ServeSettings

VIDEO_BYTES = 0.15  # of an H.264 file, per pixel: more than it usually has
RECENT = 5  # runs whose speed counts
SEEN = 50  # runs in which they are looked for


def estimate(
    timeline: Timeline, config: RunConfig, *, count: int, runs: Path, videos: Sequence[Video]
) -> dict[str, Any]:
    """The estimate of ``count`` videos of a timeline, generated one after the other; loads no model.

    The time is that of earlier runs of the same model and size, or None if there are none. Whether a large model fits
    on a GPU is only known when it is loaded.
    """
    needs = memory_needs(config, timeline)
    latents = needs.pop("latents on disk")
    weights = _weights(config)
    memory = sum(needs.values()) + weights
    pixels = config.width * config.height * config.video.upscale**2
    disk = count * int(latents + VIDEO_BYTES * pixels * timeline.video_frames)
    speed = speed_of(config, videos)
    problem = None
    room, space = free_memory(None), free_disk(runs)
    if config.backbone.family == "tiny" and room is not None and memory > room:
        problem = {"message": f"needs {human(memory)} of memory, {human(room)} are free", "hint": "make it shorter"}
    elif space is not None and disk > space:
        problem = {"message": f"needs {human(disk)} of disk, {human(space)} are free", "hint": "delete some videos"}
    return {
        "seconds": timeline.seconds,
        "latent_frames": timeline.latent_frames,
        "generation_seconds": None if speed is None else round(count * timeline.video_frames / speed, 1),
        "memory_bytes": memory,
        "disk_bytes": disk,
        "fits": problem is None,
        "problem": problem,
        "reading": [reading_of(config, prompt) for prompt in timeline.prompts if prompt],
        "shots": shots_of(timeline),
    }


def readings(fields: Fields, settings: ServeSettings) -> list[dict[str, Any]]:
    """What the model makes of each prompt of a request that may be wrong; nothing where that cannot be known."""
    try:
        scene = None if fields.scene is None else scene_from_text(fields.scene)
        config = load_config(require_model(fields.model or (scene.backbone if scene else None), settings))
    except (ApiError, LlragError):
        return []
    prompts = [fields.prompt or ""] if scene is None else [scene.prompt(index) for index in range(len(scene.shots))]
    return [reading_of(config, prompt) for prompt in prompts]


def reading_of(config: RunConfig, prompt: str) -> dict[str, Any]:
    """What a model makes of a prompt; of one that takes any text, nothing is said."""
    reading = family_of(config).read_prompt(prompt)
    if reading is None:
        return {"prompt": prompt, "understood": [], "ignored": [], "cannot_draw": []}
    return {
        "prompt": prompt,
        "understood": list(reading.understood),
        "ignored": list(reading.ignored),
        "cannot_draw": list(reading.impossible),
    }


def speed_of(config: RunConfig, videos: Sequence[Video]) -> float | None:
    """Video frames per second of the latest runs of the same model and size; ``videos`` has the newest last."""
    speeds: list[float] = []
    for video in reversed(videos[-SEEN:]):
        if len(speeds) == RECENT:
            break
        video.view.refresh()
        record = video.view.record
        if record is not None and record.is_complete and record.frames_per_second and not record.resumed_at:
            other = record.config
            if other.backbone == config.backbone and len(other.sampler.steps) == len(config.sampler.steps):
                speeds.append(record.frames_per_second)
    return sum(speeds) / len(speeds) if speeds else None


def _weights(config: RunConfig) -> int:
    """Bytes of the files of a configuration."""
    files = family_of(config).files(config, weights_folder())
    total = 0
    for path in files.values():
        found = path.rglob("*") if path.is_dir() else [path]
        total += sum(each.stat().st_size for each in found if each.is_file())
    return total
