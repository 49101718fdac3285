"""One prompt to one run folder: generate, decode, write and commit concurrently, and resume after any interruption."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from llrag_cli.config import RunConfig
from llrag_cli.engine.determinism import gpu_settings
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.engine.rollout import Block
from llrag_cli.engine.session import Session
from llrag_cli.errors import LlragError, LlragWarning, OutOfMemoryError, RunLengthError, UsageError
from llrag_cli.files.ffmpeg import ffmpeg
from llrag_cli.files.records import first_problem
from llrag_cli.files.resources import out_of_memory
from llrag_cli.models.family import family_of
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.journal import Committed, read_committed
from llrag_cli.runs.progress import OnProgress, Progress
from llrag_cli.runs.record import (
    RunRecord,
    differing,
    require_length,
    require_same,
)
from llrag_cli.runs.statistics import peak_memory, versions
from llrag_cli.runs.writer import RunWriter
from llrag_cli.scenes.schema import Scene
from llrag_cli.scenes.timeline import Timeline, next_shot, one_shot, plan_timeline

# What to do if the folder contains a run: "refuse" raises an error, "replace" starts over, "resume" continues it and
# raises an error if its settings differ, "renew" continues it and starts over if its settings differ.
Existing = Literal["refuse", "replace", "resume", "renew"]
Between = Callable[[Session], None]  # called between blocks
Blocks = Generator[Progress, None, list[RunRecord]]  # yields after each block, and returns the records


def _ignore(progress: Progress) -> None:
    pass


def make_video(
    pipeline: Pipeline,
    what: str | Scene,
    folder: RunFolder,
    *,
    seconds: float | None = None,
    seed: int = 0,
    existing: Existing = "refuse",
    image: Path | None = None,
    between: Between | None = None,
    on_progress: OnProgress = _ignore,
) -> RunRecord:
    """Generate the video of a prompt, at least ``seconds`` long, or of a scene; returns the content of ``run.json``.

    ``between`` is called with the session before each block, and may switch its prompt. If interrupted, the folder
    contains a playable video of the finished blocks, and the run can be resumed.
    """
    blocks = make_blocks(
        pipeline, what, folder, seconds=seconds, seed=seed, existing=existing, image=image, between=between
    )
    return _to_the_end(blocks, on_progress)[0]


def make_blocks(
    pipeline: Pipeline,
    what: str | Scene,
    folder: RunFolder,
    *,
    seconds: float | None = None,
    seed: int = 0,
    existing: Existing = "refuse",
    image: Path | None = None,
    between: Between | None = None,
) -> Blocks:
    """As ``make_video``, block by block: runs of one pipeline can be generated in turns.

    The folder is locked from the first block to the end. If it is closed before, the run was interrupted.
    """
    requested = requested_run(pipeline, what, seconds=seconds, seed=seed, image=image)
    ffmpeg()
    pipeline = pipeline.with_archive(requested.timeline, scratch=folder.path)
    if existing == "refuse":
        folder.require_free()
    with folder.lock():
        run = _begin(pipeline, folder, requested, existing)
        return (yield from _generate(pipeline, [run], between))


def make_takes(
    pipeline: Pipeline,
    what: str | Scene,
    folders: Sequence[RunFolder],
    *,
    seeds: Sequence[int],
    seconds: float | None = None,
    existing: Existing = "refuse",
    image: Path | None = None,
    on_progress: OnProgress = _ignore,
) -> list[RunRecord]:
    """Generate a prompt or scene under several seeds, each into a run folder of its own, in one batch.

    Takes share prompts, switches and references; each retrieves for itself. As ``make_video`` otherwise.
    """
    requested = [requested_run(pipeline, what, seconds=seconds, seed=seed, image=image) for seed in seeds]
    ffmpeg()
    pipeline = pipeline.with_archive(requested[0].timeline, batch=len(seeds), scratch=folders[0].path)
    if existing == "refuse":
        for folder in folders:
            folder.require_free()
    with ExitStack() as locks:
        for folder in folders:
            locks.enter_context(folder.lock())
        runs = [_begin(pipeline, folder, record, existing) for folder, record in zip(folders, requested, strict=True)]
        return _to_the_end(_generate(pipeline, runs, None), on_progress)


def resume_video(
    pipeline: Pipeline,
    folder: RunFolder,
    *,
    seconds: float | None = None,
    prompt: str | None = None,
    cut: bool = False,
    between: Between | None = None,
    on_progress: OnProgress = _ignore,
) -> RunRecord:
    """Resume the run of a folder, to its end or to a longer one; returns the content of ``run.json``.

    The files are byte-identical to those of a run that was never interrupted. A ``prompt`` is a new shot, which begins
    at the recorded end: a switch or a ``cut``. ``between`` is called as by ``make_video``, also before blocks that are
    committed already; a switch at one of those would change what was written.
    """
    blocks = resume_blocks(pipeline, folder, seconds=seconds, prompt=prompt, cut=cut, between=between)
    return _to_the_end(blocks, on_progress)[0]


def resume_blocks(
    pipeline: Pipeline,
    folder: RunFolder,
    *,
    seconds: float | None = None,
    prompt: str | None = None,
    cut: bool = False,
    between: Between | None = None,
) -> Blocks:
    """As ``resume_video``, block by block: see ``make_blocks``."""
    ffmpeg()
    with folder.lock():
        record = folder.read_record()
        require_same(record, record.model_copy(update=_settings(pipeline)), folder.path)
        seconds = record.seconds if seconds is None else seconds
        require_length(seconds)
        if seconds < record.seconds:
            raise RunLengthError(folder.path, recorded=record.seconds, requested=seconds)
        if prompt is None:
            longer = record.lasting(seconds)
        else:
            stop = record.config.latent_frames(seconds) // record.config.backbone.frames_per_block
            if stop <= record.blocks:
                raise UsageError("there is no time for another prompt", hint="a new prompt needs some seconds more")
            shot = next_shot(record.timeline, prompt, start=record.blocks, stop=stop, cut=cut)
            longer = record.with_timeline(record.timeline.with_shot(shot), seconds=seconds)
        pipeline = pipeline.with_archive(longer.timeline, scratch=folder.path)
        run = _resumed(pipeline, folder, record, longer)
        return (yield from _generate(pipeline, [run], between))


def requested_run(
    pipeline: Pipeline, what: str | Scene, *, seconds: float | None = None, seed: int = 0, image: Path | None = None
) -> RunRecord:
    """The record of a run that is not begun yet; raises ``UsageError`` if it cannot be generated."""
    if isinstance(what, Scene):
        timeline = plan_timeline(what, pipeline.config)
        return _new_record(pipeline, timeline, title=what.title, seconds=timeline.seconds, seed=seed)
    if not what.strip():
        raise UsageError("the prompt is empty", hint="describe in a sentence what the video shows")
    seconds = seconds or 0.0
    require_length(seconds)
    frames = pipeline.config.latent_frames(seconds)
    timeline = one_shot(what, pipeline.config, latent_frames=frames, image=image and image.absolute())
    return _new_record(pipeline, timeline, title="", seconds=seconds, seed=seed)


def _new_record(pipeline: Pipeline, timeline: Timeline, *, title: str, seconds: float, seed: int) -> RunRecord:
    backbone = pipeline.config.backbone
    readings = [family_of(pipeline.config).read_prompt(prompt) for prompt in timeline.prompts]
    unknown = [word for reading in readings if reading is not None for word in reading.ignored]
    try:
        return RunRecord(
            status="running",
            title=title,
            timeline=timeline,
            unknown_words=tuple(dict.fromkeys(unknown)),
            seed=seed,
            seconds=seconds,
            latent_frames=timeline.latent_frames,
            latent_shape=(pipeline.backbone.channels, backbone.height, backbone.width),
            video_frames=timeline.video_frames,
            fps=backbone.fps,
            device=str(pipeline.backbone.device),
            versions=versions(*([] if backbone.quantize is None else ["torchao"])),
            **_settings(pipeline),
        )
    except ValidationError as error:
        raise UsageError(f"this video cannot be generated: {first_problem(error)}", hint="change that value") from None


def _settings(pipeline: Pipeline) -> dict[str, Any]:
    """The settings of a run that come from its pipeline."""
    backbone, decoder = pipeline.backbone, pipeline.decoder
    return {
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "config": pipeline.config,
        "gpu_settings": gpu_settings(backbone.device),
        "attention": backbone.attention,
        "compiled": backbone.is_compiled,
        "decoder_layout": decoder.layout,
        "decoder_compiled": decoder.is_compiled,
        "cuda_graphs": backbone.recorder is not None,
    }


@dataclass(frozen=True)
class _Run:
    """A run whose folder is locked: its record, and what is committed of it; ``finished``: nothing is missing."""

    folder: RunFolder
    record: RunRecord
    committed: Committed = field(default_factory=Committed)
    finished: bool = False


def _begin(pipeline: Pipeline, folder: RunFolder, requested: RunRecord, existing: Existing) -> _Run:
    """A run as the folder and the request have it; the folder is locked."""
    if existing in ("resume", "renew") and folder.record.exists():
        record = folder.read_record()
        if existing == "resume" or not differing(record, requested):
            require_same(record, requested, folder.path)
            longer = record.lasting(requested.seconds)
            return _resumed(pipeline, folder, record, longer)
    if existing == "refuse":
        folder.require_free()  # again, now that no other process can write it
    folder.clear()
    return _Run(folder, requested)


def _resumed(pipeline: Pipeline, folder: RunFolder, record: RunRecord, longer: RunRecord) -> _Run:
    """A run that continues, perhaps to be ``longer`` than recorded."""
    if folder.is_finished(record, seconds=longer.seconds):
        return _Run(folder, record, finished=True)
    committed = read_committed(folder, shape=record.latent_shape, dtype=pipeline.backbone.dtype)
    if committed.video_has_changed or folder.video_has_changed(record):
        message = f"`{folder.video}` has changed since it was written; it is written again from the latents"
        warnings.warn(message, LlragWarning, stacklevel=2)
    settings = _settings(pipeline)
    for change in _other_ways(record, record.model_copy(update=settings)):
        message = f"`{folder.path}` was begun {change}: it may differ from an uninterrupted run"
        warnings.warn(message, LlragWarning, stacklevel=2)
    record = longer.updated(resumed_at=(*record.resumed_at, committed.blocks), error=None, **settings)
    return _Run(folder, record, committed)


def _other_ways(before: RunRecord, now: RunRecord) -> Iterator[str]:
    """How a run was begun and continues, where it is computed in another way than before."""
    if before.gpu_settings != now.gpu_settings:
        yield "with other settings of the GPU"
    if before.attention not in ("", now.attention):
        yield f"with the attention backend `{before.attention}`, and continues with `{now.attention}`"
    if not before.blocks_committed:
        return
    if before.compiled != now.compiled:
        yield _compiled(before.compiled) + ", and continues " + _compiled(now.compiled)
    elif before.decoder_compiled != now.decoder_compiled:
        how = _compiled(before.decoder_compiled), _compiled(now.decoder_compiled)
        yield f"with the decoder {how[0]}, and continues with it {how[1]}"
    if before.decoder_layout != now.decoder_layout:
        yield f"with the decoder {before.decoder_layout} in memory, and continues with it {now.decoder_layout}"


def _compiled(is_compiled: bool) -> str:  # noqa: FBT001 - it is what is named
    return "compiled" if is_compiled else "not compiled"


def _to_the_end(blocks: Blocks, on_progress: OnProgress) -> list[RunRecord]:
    """Generate all blocks; returns the records."""
    with closing(blocks):
        while True:
            try:
                progress = next(blocks)
            except StopIteration as end:
                records: list[RunRecord] = end.value
                return records
            on_progress(progress)


def _generate(pipeline: Pipeline, runs: Sequence[_Run], between: Between | None) -> Blocks:
    """Generate the missing blocks of runs that differ in their seed only, in one batch."""
    if all(run.finished for run in runs):
        return [run.record for run in runs]
    writers = [RunWriter(pipeline, run.folder, run.record, run.committed) for run in runs if not run.finished]
    known = min(writer.committed.blocks for writer in writers)
    block_count, size = writers[0].record.blocks, pipeline.config.backbone.frames_per_block
    progress = Progress(blocks=block_count, resumed_at=known)
    outcome: dict[str, Any] = {"status": "failed"}
    started = time.perf_counter()
    try:
        with ExitStack() as sinks:
            for writer in writers:
                sinks.enter_context(writer.sink)
            session = _session(pipeline, writers, known * size)
            for block in _blocks(session, between, writers):
                for row, writer in enumerate(writers):
                    writer.add(block, row, session.timeline)
                if block.index + 1 == known:
                    started = time.perf_counter()
                progress = _after(progress, block, pipeline.config, elapsed=time.perf_counter() - started)
                before = time.perf_counter()
                yield progress
                started += time.perf_counter() - before  # the turn of others is no work on this run
        outcome = {"status": "complete"}
    except (KeyboardInterrupt, GeneratorExit):
        outcome = {"status": "interrupted"}
        raise
    except LlragError as error:
        outcome |= {"error": error.problem}
        raise
    except (RuntimeError, MemoryError, OSError) as error:
        if not out_of_memory(error):
            raise
        failure = OutOfMemoryError(writers[0].folder.path, progress.done)
        outcome |= {"error": failure.problem}
        raise failure from error
    finally:
        elapsed = time.perf_counter() - started
        for writer in writers:
            writer.finish(outcome, elapsed=elapsed, peak=peak_memory(pipeline.backbone.device))
    finished = {run.folder.path: run.record for run in runs if run.finished}
    records = finished | {writer.folder.path: writer.record for writer in writers}
    return [records[run.folder.path] for run in runs]


def _session(pipeline: Pipeline, writers: Sequence[RunWriter], known: int) -> Session:
    """A session that generates runs from their first block; committed ones only pass through the backbone's clean pass.

    Latents, their keys and the noise of a block do not depend on when they are computed, so neither do keys and values.
    """
    latents = [writer.committed.latents for writer in writers if writer.committed.latents is not None]
    return pipeline.start(
        writers[0].record.timeline,
        seed=[writer.record.seed for writer in writers],
        committed=torch.cat([each[:, :known] for each in latents]) if known else None,
        scratch=writers[0].folder.path,
    )


def _blocks(session: Session, between: Between | None, writers: Sequence[RunWriter]) -> Iterator[Block]:
    """The blocks of a session; what changes between them is recorded before the next one begins."""
    while True:
        if between is not None:
            between(session)
        for writer in writers:
            writer.note(session.timeline)
        try:
            yield next(session)
        except StopIteration:
            return


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
        retrieved=tuple(block.retrieved[0]) if block.retrieved else (),
    )
