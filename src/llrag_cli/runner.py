"""One prompt to one run folder: generate, decode and write at the same time, and keep a record."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from llrag_cli.config import video_frames
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.run import RunFolder
from llrag_cli.files.video import VideoSink, VideoWriter, ffmpeg
from llrag_cli.pipeline import Pipeline
from llrag_cli.rollout import Block


@dataclass
class Progress:
    """How far a run is."""

    blocks: int  # to make in all
    done: int = 0
    seconds_of_video: float = 0.0
    elapsed: float = 0.0  # wall seconds since the first block began
    recalled: list[int] = field(default_factory=list)

    @property
    def speed(self) -> float:
        """Seconds of video made for each second of work."""
        return self.seconds_of_video / self.elapsed if self.elapsed else 0.0


def make_video(
    pipeline: Pipeline,
    prompt: str,
    folder: RunFolder,
    *,
    seconds: float,
    seed: int = 0,
    force: bool = False,
    image: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Make the video of a prompt; returns what was written to ``run.json``.

    Interrupted or failed, the folder keeps a playable video of what was made, and a record that says so.
    """
    if not prompt.strip():
        raise UsageError("the prompt is empty", hint="say in a sentence what the video shows")
    if not 0 < seconds < float("inf"):
        raise UsageError(f"a video of {seconds:g} seconds cannot be made", hint="`--seconds` must be more than 0")
    ffmpeg()
    pipeline = pipeline.settled(seconds, scratch=folder.path)
    config = pipeline.config
    frames = config.latent_frames(seconds)
    progress = Progress(blocks=frames // config.backbone.frames_per_block)
    folder.create(force=force)
    record: dict[str, Any] = {
        "status": "running",
        "prompt": prompt,
        "unknown_words": pipeline.text.unknown_words(prompt),
        "seed": seed,
        "seconds": seconds,
        "image": None if image is None else str(image),
        "latent_frames": frames,
        "video_frames": video_frames(frames),
        "fps": config.backbone.fps,
        "device": str(pipeline.backbone.device),
        "dtype": str(pipeline.backbone.dtype).removeprefix("torch."),
        "versions": versions(),
        "config": config.model_dump(mode="json"),
    }
    folder.write_record(record)
    writer = VideoWriter(folder.video, fps=config.backbone.fps, upscale=config.video.upscale, crf=config.video.crf)
    timings: dict[str, float] = {}
    archive = ArchiveUse(config.memory.archive)
    started = time.perf_counter()
    record["status"] = "failed"
    try:
        with VideoSink(pipeline.decoder, writer) as sink:
            for block in pipeline.blocks([prompt], seconds=seconds, seed=seed, image=image, scratch=folder.path):
                sink.put(block.latents)
                folder.log(block)
                _account(timings, block)
                archive.count(block)
                progress.done += 1
                progress.seconds_of_video = video_frames(block.start + block.latents.shape[1]) / config.backbone.fps
                progress.elapsed = time.perf_counter() - started
                progress.recalled = block.recalled[0] if block.recalled else []
                on_progress(progress)
        record["status"] = "complete"
    except KeyboardInterrupt:
        record["status"] = "interrupted"
        raise
    except LlragError as error:
        record["error"] = error.problem
        raise
    finally:
        elapsed = time.perf_counter() - started
        record |= {
            "video_frames_written": writer.frames,
            "seconds_of_work": round(elapsed, 3),
            "frames_per_second": round(writer.frames / elapsed, 2),
            "seconds_by_part": {name: round(value, 3) for name, value in timings.items()},
            "archive": archive.record(),
            "peak_memory_bytes": peak_memory(pipeline.backbone.device),
        }
        try:
            folder.write_record(record)
        except LlragError:
            if record["status"] == "complete":  # otherwise what stopped the run is the news
                raise
    return record


@dataclass
class ArchiveUse:
    """How often a recalled frame's keys and values were on the device already."""

    tier: str
    recalled: int = 0
    moved: int = 0

    def count(self, block: Block) -> None:
        """Take in a block."""
        self.recalled += sum(map(len, block.recalled))
        self.moved += block.moved

    def record(self) -> dict[str, Any]:
        """For ``run.json``: frames recalled, how many had to be brought or made anew, and the share that had not."""
        rate = round(1 - self.moved / self.recalled, 4) if self.recalled else None
        return {"tier": self.tier, "recalled": self.recalled, "moved": self.moved, "hit_rate": rate}


def _account(timings: dict[str, float], block: Block) -> None:
    for name, value in block.seconds.items():
        timings[name] = timings.get(name, 0.0) + value


def peak_memory(device: torch.device) -> int | None:
    """The most memory held so far, in bytes: on a GPU by torch, else by the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows does not tell
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def versions() -> dict[str, str]:
    """What the run was made with."""
    found = {"python": platform.python_version()}
    for name in ("llrag", "torch", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
