"""The jobs that engines hand to workers: one video, or the latents of one."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llrag_cli.batch.collect import Chosen, collect
from llrag_cli.config import RunConfig
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.latents import LatentFolder
from llrag_cli.runs.maker import Existing, make_video


@dataclass(frozen=True)
class Loading:
    """What it takes to load a pipeline, wherever a worker is."""

    config: RunConfig
    device: str = "auto"
    dtype: str = "auto"
    how: Execution = field(default_factory=Execution)
    prompts: tuple[str, ...] = ()  # of all jobs: encoded while the text encoder has the memory to itself


@dataclass(frozen=True)
class VideoJob:
    """One video into one run folder, which all machines reach by that path."""

    loading: Loading
    prompt: str
    folder: Path
    seconds: float
    seed: int
    image: Path | None = None
    existing: Existing = "resume"


@dataclass(frozen=True)
class LatentsJob:
    """The latents of some videos into a folder."""

    loading: Loading
    chosen: tuple[Chosen, ...]
    folder: Path
    seconds: float
    seed: int
    preview: bool = False


_loaded: dict[Loading, Pipeline] = {}  # the last one of this process


def pipeline_of(loading: Loading) -> Pipeline:
    """A pipeline, kept for the next job that needs the same."""
    if loading not in _loaded:
        _loaded.clear()
        _loaded[loading] = Pipeline.load(
            loading.config, device=loading.device, dtype=loading.dtype, how=loading.how, prompts=loading.prompts
        )
    return _loaded[loading]


def make(job: VideoJob) -> dict[str, Any]:
    """Make a video, or go on with it; returns what its ``run.json`` says."""
    return make_video(
        pipeline_of(job.loading),
        job.prompt,
        RunFolder(job.folder),
        seconds=job.seconds,
        seed=job.seed,
        existing=job.existing,
        image=job.image,
    )


def keep_latents(job: LatentsJob) -> int:
    """Make the videos of a job and keep their latents; returns how many there were to make."""
    batches = collect(
        pipeline_of(job.loading),
        job.chosen,
        LatentFolder(job.folder),
        seconds=job.seconds,
        seed=job.seed,
        batch=len(job.chosen),
        preview=job.preview,
    )
    return sum(len(files) for files in batches)
