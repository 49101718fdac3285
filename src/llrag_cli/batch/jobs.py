"""The jobs that engines give to workers: one video, or the latents of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llrag_cli.batch.collect import NumberedPrompt, collect
from llrag_cli.config import RunConfig
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.memory.own import OwnRule, load_rule
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.latents import LatentFolder
from llrag_cli.runs.maker import Existing, make_video
from llrag_cli.runs.record import RunRecord


@dataclass(frozen=True)
class PipelineSpec:
    """How a worker loads its pipeline, on any machine."""

    config: RunConfig
    device: str = "auto"
    dtype: str = "auto"
    execution: Execution = field(default_factory=Execution)
    prompts: tuple[str, ...] = ()  # of all jobs, encoded before the backbone takes the memory


@dataclass(frozen=True)
class VideoJob:
    """One video into one run folder, whose path is the same on all machines."""

    pipeline: PipelineSpec
    prompt: str
    folder: Path
    seconds: float
    seed: int
    image: Path | None = None
    existing: Existing = "resume"


@dataclass(frozen=True)
class LatentsJob:
    """The latents of a batch of videos into a folder."""

    pipeline: PipelineSpec
    prompts: tuple[NumberedPrompt, ...]
    folder: Path
    seconds: float
    seed: int
    preview: bool = False


_loaded: dict[PipelineSpec, Pipeline] = {}  # the most recent one of this process


def load_pipeline(spec: PipelineSpec) -> Pipeline:
    """The pipeline of a specification, kept for the next job that has the same."""
    if spec not in _loaded:
        _loaded.clear()
        if isinstance(spec.config.memory, OwnRule):
            load_rule(spec.config.memory.rule)  # as the process that made the job has done
        _loaded[spec] = Pipeline.load(
            spec.config, device=spec.device, dtype=spec.dtype, how=spec.execution, prompts=spec.prompts
        )
    return _loaded[spec]


def generate_video(job: VideoJob) -> RunRecord:
    """Generate or resume the video of a job; returns the content of its ``run.json``."""
    return make_video(
        load_pipeline(job.pipeline),
        job.prompt,
        RunFolder(job.folder),
        seconds=job.seconds,
        seed=job.seed,
        existing=job.existing,
        image=job.image,
    )


def collect_latents(job: LatentsJob) -> int:
    """Generate the missing videos of a job and keep their latents; returns how many were missing."""
    batches = collect(
        load_pipeline(job.pipeline),
        job.prompts,
        LatentFolder(job.folder),
        seconds=job.seconds,
        seed=job.seed,
        batch=len(job.prompts),
        preview=job.preview,
    )
    return sum(len(files) for files in batches)
