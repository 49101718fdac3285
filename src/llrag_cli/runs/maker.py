"""One prompt to one run folder: generate, decode, write and commit at the same time, and go on after anything."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from llrag_cli.config import RunConfig, what_decides
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.engine.rollout import Block
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.journal import Committed, Journal, read_committed
from llrag_cli.runs.video import SegmentedVideo, VideoSink, ffmpeg

# What becomes of a run that is there: an error; made anew; gone on with, which is an error if it was begun otherwise;
# gone on with, or made anew if it was begun otherwise.
Existing = Literal["refuse", "replace", "resume", "renew"]
SEGMENT_SECONDS = 4.0  # of video that are encoded by themselves; a run that is killed has yet to write as much


@dataclass
class Progress:
    """How far a run is."""

    blocks: int  # to make in all
    before: int = 0  # of them, those that were made before it was interrupted
    done: int = 0
    seconds_of_video: float = 0.0
    elapsed: float = 0.0  # wall seconds since the first new block began
    speed: float = 0.0  # seconds of video made for each second of work
    recalled: list[int] = field(default_factory=list)


OnProgress = Callable[[Progress], None]


def _ignore(progress: Progress) -> None:
    pass


def make_video(
    pipeline: Pipeline,
    prompt: str,
    folder: RunFolder,
    *,
    seconds: float,
    seed: int = 0,
    existing: Existing = "refuse",
    image: Path | None = None,
    on_progress: OnProgress = _ignore,
) -> dict[str, Any]:
    """Make the video of a prompt; returns what was written to ``run.json``.

    Interrupted or failed, the folder keeps a playable video of what was made, and all that it takes to go on.
    """
    if not prompt.strip():
        raise UsageError("the prompt is empty", hint="say in a sentence what the video shows")
    if not 0 < seconds < float("inf"):
        raise UsageError(f"a video of {seconds:g} seconds cannot be made", hint="`--seconds` must be more than 0")
    ffmpeg()
    pipeline = pipeline.settled(seconds, scratch=folder.path)
    wanted = _record(pipeline, ((0, prompt),), seconds=seconds, seed=seed, image=image)
    if existing == "refuse":
        folder.require_free()
    with folder.lock():
        if existing in ("resume", "renew") and folder.record.exists():
            record = folder.read_record()
            if existing == "renew" and differing(record, wanted):
                folder.clear()
                return _run(pipeline, folder, wanted, Committed(), on_progress)
            require_same(record, wanted, folder.path)
            return _go_on(pipeline, folder, record | {"seconds": max(seconds, record["seconds"])}, on_progress)
        if existing == "refuse":
            folder.require_free()  # now that nobody else can write it
        folder.clear()
        return _run(pipeline, folder, wanted, Committed(), on_progress)


def resume_video(
    pipeline: Pipeline,
    folder: RunFolder,
    *,
    seconds: float | None = None,
    prompt: str | None = None,
    on_progress: OnProgress = _ignore,
) -> dict[str, Any]:
    """Go on with the run of a folder, to its end or to a later one; returns what was written to ``run.json``.

    The finished files are those of a run that was never interrupted. With a ``prompt``, what is made beyond the
    length that the run had follows that one.
    """
    ffmpeg()
    with folder.lock():
        record = folder.read_record()
        require_same(record, record | _settings(pipeline), folder.path)
        seconds = record["seconds"] if seconds is None else seconds
        if seconds < record["seconds"]:
            raise UsageError(
                f"`{folder.path}` is a run of {record['seconds']:g} s and cannot become one of {seconds:g} s",
                hint="`--seconds` may only grow",
            )
        if prompt is not None:
            start = record["latent_frames"] // pipeline.config.backbone.frames_per_block
            record["script"] = [*([at, said] for at, said in record["script"] if at < start), [start, prompt]]
        pipeline = pipeline.settled(seconds, scratch=folder.path)
        return _go_on(pipeline, folder, record | _settings(pipeline) | {"seconds": seconds}, on_progress)


def _go_on(pipeline: Pipeline, folder: RunFolder, record: dict[str, Any], on_progress: OnProgress) -> dict[str, Any]:
    committed = read_committed(folder.path, shape=tuple(record["latent_shape"]), dtype=pipeline.backbone.dtype)
    frames = pipeline.config.latent_frames(record["seconds"])
    block = pipeline.config.backbone.frames_per_block
    if record["status"] == "complete" and committed.blocks * block >= frames and folder.video.exists():
        return record
    record |= {"latent_frames": frames, "video_frames": pipeline.config.video_frames(frames)}
    record["resumed_at"] = [*record.get("resumed_at", []), committed.blocks]
    record.pop("error", None)
    return _run(pipeline, folder, record, committed, on_progress)


def _settings(pipeline: Pipeline) -> dict[str, Any]:
    """What a loaded pipeline decides about a video."""
    return {
        "dtype": str(pipeline.backbone.dtype).removeprefix("torch."),
        "config": pipeline.config.model_dump(mode="json"),
    }


def _record(
    pipeline: Pipeline, script: tuple[tuple[int, str], ...], *, seconds: float, seed: int, image: Path | None
) -> dict[str, Any]:
    """``run.json`` of a new run."""
    config, backbone = pipeline.config, pipeline.config.backbone
    frames = config.latent_frames(seconds)
    return {
        "status": "running",
        "prompt": script[0][1],
        "script": [list(part) for part in script],
        "unknown_words": pipeline.text.unknown_words(script[0][1]),
        "seed": seed,
        "seconds": seconds,
        "image": None if image is None else str(image),
        "latent_frames": frames,
        "latent_shape": [pipeline.backbone.channels, backbone.height, backbone.width],
        "video_frames": pipeline.config.video_frames(frames),
        "fps": backbone.fps,
        "device": str(pipeline.backbone.device),
        "versions": versions(),
        **_settings(pipeline),
    }


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of the settings that two records of runs disagree on, dotted as in ``--set``."""
    names = [name for name in ("prompt", "seed", "image", "dtype") if before.get(name) != now.get(name)]
    old, new = (
        what_decides(RunConfig.model_validate(record["config"]).model_dump(mode="json", exclude={"name", "about"}))
        for record in (before, now)
    )
    return names + sorted(_unequal(old, new))


def _unequal(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for name in old.keys() | new.keys():
        one, other = old.get(name), new.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _unequal(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}"


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Raise an error unless a run would go on as it was begun."""
    names = differing(before, now)
    if names:
        raise UsageError(
            f"`{path}` was begun with other settings: {', '.join(f'`{name}`' for name in names)}",
            hint="go on with the settings it has, choose another `--out`, or replace the run with `--force`",
        )


def segment_blocks(config: RunConfig) -> int:
    """How many blocks are encoded together, whoever makes them and however often the run is interrupted."""
    frames = 4 * config.backbone.frames_per_block
    return max(1, round(SEGMENT_SECONDS * config.backbone.fps / frames))


def _run(
    pipeline: Pipeline, folder: RunFolder, record: dict[str, Any], committed: Committed, on_progress: OnProgress
) -> dict[str, Any]:
    """Make what is missing of a run whose folder is locked."""
    config, backbone = pipeline.config, pipeline.backbone
    size = config.backbone.frames_per_block
    progress = Progress(blocks=record["latent_frames"] // size, before=committed.blocks)
    record["status"] = "running"
    folder.write_record(record)
    journal = Journal(folder.path, shape=tuple(record["latent_shape"]), dtype=backbone.dtype, committed=committed)
    video = SegmentedVideo(
        folder.video,
        fps=record["fps"],
        blocks=segment_blocks(config),
        upscale=config.video.upscale,
        crf=config.video.crf,
        mark=committed.video,
    )
    written = committed.video.blocks  # of the blocks that are there, those in whole segments of the video
    timings: dict[str, float] = dict(record.get("seconds_by_part", {}))
    archive = ArchiveUse.after(record.get("archive"), tier=config.memory.archive)
    worked = record.get("seconds_of_work", 0.0)
    started = time.perf_counter()
    record["status"] = "failed"
    try:
        before = None
        if written and committed.latents is not None:
            before = committed.latents[:, max(0, written * size - pipeline.decoder.reach) : written * size]
        with VideoSink(pipeline.decoder.stream(), video, before=before) as sink:
            for block in _blocks(pipeline, record, committed, scratch=folder.path):
                if block.index < committed.blocks:
                    _require_same_recall(block, committed, folder.path)
                    if block.index >= written:
                        sink.put(block.latents)
                    started = time.perf_counter() if block.index + 1 == committed.blocks else started
                else:
                    sink.put(block.latents, commit=partial(_commit, journal, block, video))
                    _account(timings, block)
                    archive.count(block)
                _advance(progress, block, config, elapsed=time.perf_counter() - started)
                on_progress(progress)
        record["status"] = "complete"
    except KeyboardInterrupt:
        record["status"] = "interrupted"
        raise
    except LlragError as error:
        record["error"] = error.problem
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        problem = f"memory ran out in block {progress.done}"
        record["error"] = problem
        raise LlragError(
            problem,
            hint="a cheaper `--archive`, `--offload` or a smaller `--memory-budget` needs less; "
            f"what was made is kept, `llrag generate --resume {folder.path}` goes on",
        ) from error
    finally:
        elapsed = worked + time.perf_counter() - started
        record |= {
            "video_frames_written": video.frames,
            "blocks_committed": journal.blocks,
            "seconds_of_work": round(elapsed, 3),
            "frames_per_second": round(video.frames / elapsed, 2),
            "seconds_by_part": {name: round(value, 3) for name, value in timings.items()},
            "archive": archive.record(),
            "peak_memory_bytes": peak_memory(backbone.device),
        }
        _finish(folder, journal, record)
    return record


def _blocks(pipeline: Pipeline, record: Mapping[str, Any], committed: Committed, *, scratch: Path) -> Iterable[Block]:
    """The blocks of a run from its first on; those that are committed pass through the backbone's clean pass again.

    Latents, their keys and the noise of a block are the same whenever they are asked for, so keys and values are too.
    """
    given: Tensor | None = committed.latents
    if given is None and record["image"] is not None:
        given = pipeline.image_latent(Path(record["image"]))
    starts = [int(start) for start, _ in record["script"]]
    texts = [pipeline.text.encode([prompt]) for _, prompt in record["script"]]
    return pipeline.blocks_of(
        texts[0],
        seconds=record["seconds"],
        seed=record["seed"],
        given=given,
        later_prompts=dict(zip(starts[1:], texts[1:], strict=True)),
        scratch=scratch,
    )


def _commit(journal: Journal, block: Block, video: SegmentedVideo, latents: Tensor) -> None:
    journal.commit(block, latents, video.mark)


def _require_same_recall(block: Block, committed: Committed, path: Path) -> None:
    """Raise an error if a block that is made again recalls what it did not: then nothing after it would be the same."""
    recalled = tuple(block.recalled[0]) if block.recalled else ()
    if recalled != committed.recalled[block.index]:
        raise LlragError(
            f"`{path}` cannot be gone on with here: block {block.index} recalls other frames than it did",
            hint="resume on the kind of machine, and with the versions, that run.json names",
        )


def _advance(progress: Progress, block: Block, config: RunConfig, *, elapsed: float) -> None:
    fps = config.backbone.fps
    progress.done = block.index + 1
    progress.seconds_of_video = config.video_frames(block.start + block.latents.shape[1]) / fps
    progress.elapsed = elapsed
    before = config.video_frames(progress.before * block.latents.shape[1]) / fps if progress.before else 0.0
    new = progress.done > progress.before
    progress.speed = (progress.seconds_of_video - before) / elapsed if new and elapsed else 0.0
    progress.recalled = block.recalled[0] if block.recalled else []


def _finish(folder: RunFolder, journal: Journal, record: Mapping[str, Any]) -> None:
    """Close a run's files; if that fails when the run itself did not, it is an error."""
    try:
        journal.close()
        folder.write_record(record)
    except LlragError:
        if record["status"] == "complete":  # otherwise what stopped the run is the news
            raise


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


@dataclass
class ArchiveUse:
    """How often a recalled frame's keys and values were on the device already."""

    tier: str
    recalled: int = 0
    moved: int = 0

    @classmethod
    def after(cls, record: Mapping[str, Any] | None, *, tier: str) -> ArchiveUse:
        """Going on from what ``run.json`` says, unless that was of another tier."""
        if record is None or record["tier"] != tier:
            return cls(tier)
        return cls(tier, record["recalled"], record["moved"])

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
