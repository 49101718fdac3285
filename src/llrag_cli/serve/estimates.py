"""What a video will take, before it is asked for: length, time, memory and disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llrag_cli.config import RunConfig, VideoConfig
from llrag_cli.errors import LlragError
from llrag_cli.files.paths import weights_folder
from llrag_cli.files.resources import free_disk
from llrag_cli.formatting import human
from llrag_cli.memory.strategies import SlidingWindow
from llrag_cli.models.family import family_of
from llrag_cli.presets import load_config
from llrag_cli.scenes.needs import memory_needs
from llrag_cli.scenes.reading import scene_from_text
from llrag_cli.scenes.timeline import Timeline
from llrag_cli.serve.objects import shots_of
from llrag_cli.serve.outlook import Answer, MemoryQuestion, Outlook, SpeedQuestion
from llrag_cli.serve.plans import Fields, require_model
from llrag_cli.serve.problems import ApiError
from llrag_cli.serve.queue import Video
from llrag_cli.serve.settings import ServeSettings

VIDEO_BYTES = 0.15  # of an H.264 file, per pixel: more than it usually has
RECENT = 5  # runs whose speed counts
SEEN = 50  # runs in which they are looked for


def estimate(
    timeline: Timeline, config: RunConfig, outlook: Outlook, *, count: int, runs: Path, videos: Sequence[Video]
) -> dict[str, Any]:
    """The estimate of ``count`` videos of a timeline, generated in turns or one after the other.

    The time is that of earlier runs of the same model and size, or of some blocks that a worker tries. What only a
    worker can tell may not be known yet, ``measuring``: then another estimate a little later knows more.
    """
    memory = _memory(timeline, config, outlook, count=count, runs=runs)
    question = SpeedQuestion(_costs(config), timeline.shots[-1].prompt)
    speed = speed_of(config, videos)
    tried = outlook.ask(question) if speed is None else None
    if tried is not None:
        speed = tried.frames_per_second
    needs = memory_needs(config, timeline)
    pixels = config.width * config.height * config.video.upscale**2
    disk = count * int(needs["latents on disk"] + VIDEO_BYTES * pixels * timeline.video_frames)
    space = free_disk(runs)
    problem = None
    if memory is not None and memory.problem is not None:
        problem = {"message": memory.problem, "hint": memory.hint}
    elif space is not None and disk > space:
        problem = {"message": f"needs {human(disk)} of disk, {human(space)} are free", "hint": "delete some videos"}
    return {
        "seconds": timeline.seconds,
        "latent_frames": timeline.latent_frames,
        "generation_seconds": None if speed is None else round(count * timeline.video_frames / speed, 1),
        "memory_bytes": None if memory is None else memory.bytes,
        "disk_bytes": disk,
        "fits": problem is None,
        "problem": problem,
        "measuring": outlook.is_answered and (memory is None or (speed is None and tried is None)),
        "reading": [reading_of(config, prompt) for prompt in timeline.prompts if prompt],
        "shots": shots_of(timeline),
    }


def _memory(timeline: Timeline, config: RunConfig, outlook: Outlook, *, count: int, runs: Path) -> Answer | None:
    """What a worker says of the memory; where none can be asked, what the keys, values and weights take."""
    if outlook.is_answered:
        references, pinned = timeline.reference_count, timeline.pinned_frames
        return outlook.ask(MemoryQuestion(config, timeline.seconds, references, pinned, scratch=runs, count=count))
    needs = memory_needs(config, timeline)
    return Answer(bytes=sum(needs.values()) - needs["latents on disk"] + _weights(config))


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
    costs = _costs(config)
    for video in reversed(videos[-SEEN:]):
        if len(speeds) == RECENT:
            break
        video.view.refresh()
        record = video.view.record
        if record is None or not record.is_complete or not record.frames_per_second or record.resumed_at:
            continue
        if _costs(record.config) == costs:
            speeds.append(record.frames_per_second)
    return sum(speeds) / len(speeds) if speeds else None


def _costs(config: RunConfig) -> RunConfig:
    """A configuration without what hardly changes what a block costs, such as which frames its memory chooses."""
    memory = SlidingWindow(window=config.memory.window, sink=0)
    plain = {"about": "", "checked": "", "memory": memory, "video": VideoConfig(decoder=config.video.decoder)}
    return config.model_copy(update=plain)


def _weights(config: RunConfig) -> int:
    """Bytes of the files of a configuration."""
    files = family_of(config).files(config, weights_folder())
    total = 0
    for path in files.values():
        found = path.rglob("*") if path.is_dir() else [path]
        total += sum(each.stat().st_size for each in found if each.is_file())
    return total
