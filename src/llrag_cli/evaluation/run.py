"""Generate the missing videos of a benchmark and score all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from pydantic import Field

from llrag_cli.batch.jobs import PipelineSpec, VideoJob, generate_video
from llrag_cli.batch.sharing import shared
from llrag_cli.config import RunConfig
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.errors import LlragError, RunLockedError
from llrag_cli.evaluation.grid import Case, Grid, horizon_frames
from llrag_cli.evaluation.metrics.backends import find_backend
from llrag_cli.evaluation.metrics.inputs import Backend
from llrag_cli.evaluation.metrics.registry import metrics_of
from llrag_cli.evaluation.metrics.score import Scores, score_beginnings
from llrag_cli.files.durable import replace_text, require_own
from llrag_cli.files.guarded import MEGABYTE, UnreadableError, read_bytes
from llrag_cli.files.records import Record, parse_as
from llrag_cli.models.family import family_of
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.maker import make_video
from llrag_cli.runs.progress import Progress
from llrag_cli.runs.record import Count, RunRecord, differing
from llrag_cli.runs.video import open_video

SCHEMA = 2  # of scores-BACKEND.json


@dataclass(frozen=True)
class Scored:
    """The scores of a video at one horizon."""

    case: Case
    seconds: float
    scores: Scores
    backend: str = ""  # its name


class Bench:
    """A benchmark folder: ``videos/``, each with its scores by every backend used, and the results."""

    def __init__(self, root: Path, grid: Grid, *, settings: Sequence[str] = ()) -> None:
        self.root, self.grid, self.settings = root, grid, tuple(settings)

    def config(self, case: Case) -> RunConfig:
        """The configuration of a video."""
        return self.grid.variant(case.memory).config(case.backbone, self.settings)

    def blocks(self, case: Case) -> int:
        """Number of blocks of a video."""
        config = self.config(case)
        return config.latent_frames(self.grid.seconds) // config.backbone.frames_per_block

    def is_made(self, case: Case) -> bool:
        """Whether the video exists, is complete, long enough and made with these settings."""
        return self._record(case) is not None

    def _record(self, case: Case) -> RunRecord | None:
        """The record of a video that is made; None if it is not."""
        folder, config = RunFolder(case.folder(self.root)), self.config(case)
        try:
            record = folder.read_record()
        except LlragError:  # not a run, or one of another version
            return None
        wanted = record.opening_with(prompt=case.prompt)
        wanted = wanted.model_copy(update={"seed": case.seed, "config": config})
        made = (
            record.is_complete
            and folder.video.exists()
            and not differing(record, wanted)
            and record.video_frames >= horizon_frames(config, self.grid.seconds)
            and not folder.video_has_changed(record)
        )
        return record if made else None

    def missing(self) -> list[Case]:
        """The videos still to make."""
        return [case for case in self.grid.cases() if not self.is_made(case)]

    def measured(self, case: Case) -> tuple[float, float] | None:
        """Seconds of work and bytes for each second of a finished video; None if there is none."""
        record = self._record(case)
        if record is None:
            return None
        seconds = max(1, record.video_frames_written) / record.fps
        size = RunFolder(case.folder(self.root)).video.stat().st_size
        return record.seconds_of_work / seconds, size / seconds

    def is_scored(self, case: Case, backend: Backend) -> bool:
        """Whether a video exists and has its scores at every horizon."""
        kept = kept_scores(case.folder(self.root), self.config(case), backend)
        return self.is_made(case) and all(f"{seconds:g}" in kept for seconds in self.grid.horizons)

    def job(self, case: Case, *, device: str, dtype: str, backend: str) -> CaseJob:
        """A video as a job of an engine."""
        prompts = tuple(prompt for _, prompt in self.grid.prompts)
        spec = PipelineSpec(self.config(case), device, dtype, prompts=prompts)
        folder = case.folder(self.root).resolve()
        video = VideoJob(spec, case.prompt, folder, self.grid.seconds, case.seed, existing="renew")
        return CaseJob(video, made=self.is_made(case), horizons=self.grid.horizons, backend=backend)

    def make(
        self,
        device: str,
        dtype: str,
        on_block: Callable[[Case, int], None],
        on_wait: Callable[[RunLockedError, int], None] = lambda error, count: None,
    ) -> Iterator[Case]:
        """Make the missing videos; each backbone and memory is loaded once. Yields each finished case.

        Those that another process is making come last, as in ``shared``.
        """
        pipeline, loaded = None, ("", "")

        def attempt(case: Case) -> None:
            nonlocal pipeline, loaded
            RunFolder(case.folder(self.root)).require_unlocked()  # before weights are loaded for it
            if self.is_made(case):
                return
            if pipeline is None or loaded != (case.backbone, case.memory):
                pipeline = None  # free the previous one before loading the next
                prompts = [prompt for _, prompt in self.grid.prompts]
                pipeline = Pipeline.load(self.config(case), device=device, dtype=dtype, prompts=prompts)
                loaded = case.backbone, case.memory
            folder = RunFolder(case.folder(self.root))

            def on_progress(progress: Progress) -> None:
                on_block(case, progress.done)

            make_video(
                pipeline,
                case.prompt,
                folder,
                seconds=self.grid.seconds,
                seed=case.seed,
                existing="renew",
                on_progress=on_progress,
            )

        for case, _ in shared(self.missing(), attempt, on_wait=on_wait):
            yield case

    def scores(self, case: Case, backend: Backend) -> list[Scored]:
        """The scores of a video at every horizon."""
        scores = score_run(case.folder(self.root), self.config(case), self.grid.horizons, backend)
        return [Scored(case, seconds, scores[f"{seconds:g}"], backend.name) for seconds in self.grid.horizons]


@dataclass(frozen=True)
class CaseJob:
    """One video of a benchmark, to be made unless it exists, and scored."""

    video: VideoJob
    made: bool
    horizons: tuple[float, ...]
    backend: str


def make_and_score(job: CaseJob) -> None:
    """Do a job; video and scores are left in its folder."""
    if not job.made:
        generate_video(job.video)
    spec = job.video.pipeline
    score_run(job.video.folder, spec.config, job.horizons, cached_backend(job.backend, spec.device))


cached_backend = cache(find_backend)  # a worker scores many videos


def score_run(path: Path, config: RunConfig, horizons: Sequence[float], backend: Backend) -> dict[str, Scores]:
    """The scores of a run by horizon; those in ``scores-official.json`` and the like are not computed again."""
    video = RunFolder(path).video
    kept = kept_scores(path, config, backend)
    if missing := [seconds for seconds in horizons if f"{seconds:g}" not in kept]:
        ends = [horizon_frames(config, seconds) for seconds in missing]
        found = score_file(video, ends, sprites=family_of(config).shows_sprites, backend=backend)
        kept |= {f"{seconds:g}": scores for seconds, scores in zip(missing, found, strict=True)}
        content = {
            "schema": SCHEMA,
            "backend": backend.name,
            "bytes": video.stat().st_size,
            "horizons": {horizon: asdict(scores) for horizon, scores in kept.items()},
        }
        hint = "free some disk space and run again; finished videos and scores are kept"
        replace_text(scores_file(path, backend), json.dumps(content) + "\n", hint=hint)
    return kept


def score_file(video: Path, ends: Sequence[int], *, sprites: bool, backend: Backend) -> list[Scores]:
    """The scores of beginnings of a video file, of so many frames, rising."""
    opened = open_video(video)
    try:
        return score_beginnings(opened.frames, ends, fps=opened.fps, backend=backend, sprites=sprites)
    finally:
        opened.close()


class _HorizonRecord(Record):
    """As ``Scores``."""

    frames: Count
    clips: Count
    metrics: dict[str, float | None]
    per_clip: dict[str, list[float | None]]


class _ScoresRecord(Record):
    """The content of ``scores-offline.json`` and the like."""

    schema_: int = Field(alias="schema")
    backend: str
    bytes: Count
    horizons: dict[str, _HorizonRecord]


def scores_file(path: Path, backend: Backend) -> Path:
    """Where the scores of a run folder by a backend are kept."""
    return path / f"scores-{backend.kind}.json"


def kept_scores(path: Path, config: RunConfig, backend: Backend) -> dict[str, Scores]:
    """Scores of a run computed earlier, by horizon.

    None if the video, the backend or the metrics have changed, or the file is damaged.
    """
    metrics = metrics_of(backend, sprites=family_of(config).shows_sprites)
    names = [metric.name for metric in metrics]
    series = {metric.series.name for metric in metrics if metric.series is not None}
    file = scores_file(path, backend)
    require_own(file)
    try:
        content = parse_as(_ScoresRecord, read_bytes(file, limit=16 * MEGABYTE))
        expected = (SCHEMA, backend.name, RunFolder(path).video.stat().st_size)
    except (OSError, UnreadableError):
        return {}
    if (content.schema_, content.backend, content.bytes) != expected:
        return {}
    return {
        horizon: Scores(**dict(entry))
        for horizon, entry in content.horizons.items()
        if list(entry.metrics) == names
        and entry.per_clip.keys() == series
        and all(len(values) == entry.clips for values in entry.per_clip.values())
    }
