"""One prompt to one run folder: generate, decode, write and commit concurrently, and resume after any interruption."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.engine.rollout import Block
from llrag_cli.engine.session import Session
from llrag_cli.errors import LlragError, OutOfMemoryError, RunDivergedError, RunLengthError, UsageError
from llrag_cli.files.ffmpeg import ffmpeg
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.runs.folder import BlockMemory, RunFolder
from llrag_cli.runs.journal import Committed, Journal, read_committed
from llrag_cli.runs.progress import OnProgress, Progress
from llrag_cli.runs.record import (
    RunRecord,
    ScheduledPrompt,
    differing,
    first_problem,
    require_length,
    require_same,
)
from llrag_cli.runs.sink import VideoSink
from llrag_cli.runs.statistics import ArchiveUse, peak_memory, versions
from llrag_cli.runs.video import SegmentedVideo

# What to do if the folder contains a run: "refuse" raises an error, "replace" starts over, "resume" continues it and
# raises an error if its settings differ, "renew" continues it and starts over if its settings differ.
Existing = Literal["refuse", "replace", "resume", "renew"]
SEGMENT_SECONDS = 4.0  # of video that are encoded together; a killed run has to encode at most as much again


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
) -> RunRecord:
    """Generate the video of a prompt; returns the content of ``run.json``.

    If interrupted, the folder contains a playable video of the finished blocks, and the run can be resumed.
    """
    if not prompt.strip():
        raise UsageError("the prompt is empty", hint="describe in a sentence what the video shows")
    require_length(seconds)
    ffmpeg()
    pipeline = pipeline.with_archive(seconds, scratch=folder.path)
    requested = _new_record(pipeline, prompt, seconds=seconds, seed=seed, image=image)
    if existing == "refuse":
        folder.require_free()
    with folder.lock():
        if existing in ("resume", "renew") and folder.record.exists():
            record = folder.read_record()
            if existing == "resume" or not differing(record, requested):
                require_same(record, requested, folder.path)
                return _resume(pipeline, folder, record, seconds=max(seconds, record.seconds), on_progress=on_progress)
        if existing == "refuse":
            folder.require_free()  # again, now that no other process can write it
        folder.clear()
        return _run(pipeline, folder, requested, Committed(), on_progress)


def resume_video(
    pipeline: Pipeline,
    folder: RunFolder,
    *,
    seconds: float | None = None,
    prompt: str | None = None,
    on_progress: OnProgress = _ignore,
) -> RunRecord:
    """Resume the run of a folder, to its end or to a longer one; returns the content of ``run.json``.

    The files are byte-identical to those of a run that was never interrupted. A ``prompt`` applies to what is
    generated beyond the recorded length.
    """
    ffmpeg()
    with folder.lock():
        record = folder.read_record()
        require_same(record, record.model_copy(update=_settings(pipeline)), folder.path)
        seconds = record.seconds if seconds is None else seconds
        require_length(seconds)
        if seconds < record.seconds:
            raise RunLengthError(folder.path, recorded=record.seconds, requested=seconds)
        if prompt is not None:
            kept = tuple(entry for entry in record.prompt_schedule if entry.block < record.blocks)
            entry = ScheduledPrompt(block=record.blocks, prompt=prompt)
            record = record.updated(prompt_schedule=(*kept, entry))
        pipeline = pipeline.with_archive(seconds, scratch=folder.path)
        return _resume(pipeline, folder, record, seconds=seconds, on_progress=on_progress)


def segment_blocks(config: RunConfig) -> int:
    """How many blocks are encoded together; it depends on the configuration only, so that interruptions do not show."""
    frames = config.video_frames(1 + config.backbone.frames_per_block) - 1
    return max(1, round(SEGMENT_SECONDS * config.backbone.fps / frames))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _new_record(pipeline: Pipeline, prompt: str, *, seconds: float, seed: int, image: Path | None) -> RunRecord:
    backbone = pipeline.config.backbone
    frames = pipeline.config.latent_frames(seconds)
    try:
        return RunRecord(
            status="running",
            prompt_schedule=(ScheduledPrompt(block=0, prompt=prompt),),
            unknown_words=tuple(pipeline.text.unknown_words(prompt)),
            seed=seed,
            seconds=seconds,
            image=None if image is None else str(image),
            latent_frames=frames,
            latent_shape=(pipeline.backbone.channels, backbone.height, backbone.width),
            video_frames=pipeline.config.video_frames(frames),
            fps=backbone.fps,
            device=str(pipeline.backbone.device),
            versions=versions(),
            **_settings(pipeline),
        )
    except ValidationError as error:
        raise UsageError(f"this video cannot be generated: {first_problem(error)}", hint="change that value") from None


def _settings(pipeline: Pipeline) -> dict[str, Any]:
    """The settings of a run that come from its pipeline."""
    return {"dtype": str(pipeline.backbone.dtype).removeprefix("torch."), "config": pipeline.config}


def _resume(
    pipeline: Pipeline, folder: RunFolder, record: RunRecord, *, seconds: float, on_progress: OnProgress
) -> RunRecord:
    if folder.is_finished(record, seconds=seconds):
        return folder.read_record()
    committed = read_committed(folder, shape=record.latent_shape, dtype=pipeline.backbone.dtype)
    frames = record.config.latent_frames(seconds)
    record = record.updated(
        seconds=seconds,
        latent_frames=frames,
        video_frames=record.config.video_frames(frames),
        resumed_at=(*record.resumed_at, committed.blocks),
        error=None,
        **_settings(pipeline),
    )
    return _run(pipeline, folder, record, committed, on_progress)


def _run(
    pipeline: Pipeline, folder: RunFolder, record: RunRecord, committed: Committed, on_progress: OnProgress
) -> RunRecord:
    """Generate the missing blocks of a run whose folder is locked."""
    config, dtype = pipeline.config, pipeline.backbone.dtype
    size = config.backbone.frames_per_block
    record = record.updated(status="running")
    folder.write_record(record)
    journal = Journal(folder, shape=record.latent_shape, dtype=dtype, committed=committed)
    video = SegmentedVideo(
        folder.video,
        fps=record.fps,
        blocks=segment_blocks(config),
        upscale=config.video.upscale,
        crf=config.video.crf,
        mark=committed.video,
    )
    written = committed.video.blocks  # committed blocks that are in whole segments of the video
    before = None
    if written and committed.latents is not None:
        before = committed.latents[:, max(0, written * size - pipeline.decoder.reach) : written * size]
    timings = dict(record.seconds_by_part)
    archive = archive_use(record, config)
    progress = Progress(blocks=record.blocks, resumed_at=committed.blocks)
    outcome: dict[str, Any] = {"status": "failed"}
    started = time.perf_counter()
    try:
        with VideoSink(pipeline.decoder.stream(), video, before=before) as sink:
            for block in _session(pipeline, record, committed, scratch=folder.path):
                memory = _memory_of(block)
                if block.index < committed.blocks:
                    if memory.retrieved != committed.memory[block.index].retrieved:
                        raise RunDivergedError(folder.path, block.index)
                    if block.index >= written:
                        sink.put(block.latents)
                    started = time.perf_counter() if block.index + 1 == committed.blocks else started
                else:
                    sink.put(block.latents, commit=partial(_commit, journal, memory, video))
                    timings |= {name: timings.get(name, 0.0) + value for name, value in block.seconds.items()}
                    if archive is not None:
                        archive = archive.plus(retrieved=len(memory.retrieved), moved=block.moved)
                progress = _after(progress, block, config, elapsed=time.perf_counter() - started)
                on_progress(progress)
        outcome = {"status": "complete"}
    except KeyboardInterrupt:
        outcome = {"status": "interrupted"}
        raise
    except LlragError as error:
        outcome |= {"error": error.problem}
        raise
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        failure = OutOfMemoryError(folder.path, progress.done)
        outcome |= {"error": failure.problem}
        raise failure from error
    finally:
        elapsed = record.seconds_of_work + time.perf_counter() - started
        record = record.updated(
            **outcome,
            blocks_committed=journal.blocks,
            video_frames_written=video.frames,
            seconds_of_work=round(elapsed, 3),
            frames_per_second=round(video.frames / elapsed, 2),
            seconds_by_part={name: round(value, 3) for name, value in timings.items()},
            archive=archive,
            peak_memory_bytes=peak_memory(pipeline.backbone.device),
        )
        _finish(folder, journal, record)
    return record


def _session(pipeline: Pipeline, record: RunRecord, committed: Committed, *, scratch: Path) -> Session:
    """A session that generates a run from its first block; committed ones only pass through the backbone's clean pass.

    Latents, their keys and the noise of a block do not depend on when they are computed, so neither do keys and values.
    """
    return pipeline.start(
        record.prompt,
        seconds=record.seconds,
        seed=record.seed,
        image=None if record.image is None else Path(record.image),
        initial_latents=committed.latents,
        given_frames=0 if record.image is None else 1,  # the others among the initial latents were generated
        prompt_schedule={entry.block: entry.prompt for entry in record.prompt_schedule[1:]},
        scratch=scratch,
    )


def archive_use(record: RunRecord, config: RunConfig) -> ArchiveUse | None:
    """How a run used its archive so far, if it has one; with another tier than before, counting starts again."""
    if not isinstance(config.memory, RetrievalMemory):
        return None
    tier = config.memory.archive
    assert tier != "auto"  # chosen before the record was written
    before = record.archive
    return before if before is not None and before.tier == tier else ArchiveUse(tier=tier)


def _memory_of(block: Block) -> BlockMemory:
    """What a block of one video retrieved."""
    if not block.retrieved:
        return BlockMemory(block.start)
    return BlockMemory(block.start, tuple(block.retrieved[0]), tuple(block.similarities[0]))


def _commit(journal: Journal, memory: BlockMemory, video: SegmentedVideo, latents: Tensor) -> None:
    journal.commit(memory, latents, video.mark)  # the mark of the moment


def _after(progress: Progress, block: Block, config: RunConfig, *, elapsed: float) -> Progress:
    """The progress of a run after a block."""
    size, fps = block.latents.shape[1], config.backbone.fps
    seconds = config.video_frames(block.start + size) / fps
    resumed_at = progress.resumed_at
    before = config.video_frames(resumed_at * size) / fps if resumed_at else 0.0
    return Progress(
        blocks=progress.blocks,
        resumed_at=resumed_at,
        done=block.index + 1,
        seconds_of_video=seconds,
        new_seconds=max(0.0, seconds - before),
        elapsed=elapsed,
        retrieved=_memory_of(block).retrieved,
    )


def _finish(folder: RunFolder, journal: Journal, record: RunRecord) -> None:
    """Close the files of a run; an error in that is raised only if the run itself did not fail."""
    try:
        journal.close()
        folder.write_record(record)
    except LlragError:
        if record.is_complete:
            raise
