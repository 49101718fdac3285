"""Making what is missing and scoring what is there, video by video."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from llrag_cli.batch.jobs import PipelineSpec, VideoJob, generate_video
from llrag_cli.config import RunConfig
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.errors import LlragError
from llrag_cli.evaluation.grid import Cell, Grid, horizon_frames, method_config
from llrag_cli.evaluation.metrics.backends import find_back_end
from llrag_cli.evaluation.metrics.score import BackEnd, score
from llrag_cli.files.durable import replace_text
from llrag_cli.models.family import Family, family_of
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.maker import make_video
from llrag_cli.runs.record import RunRecord, ScheduledPrompt, differing
from llrag_cli.runs.video import open_video

SCHEMA = 1


@dataclass(frozen=True)
class Scored:
    """A video's figures at one horizon."""

    cell: Cell
    seconds: float
    figures: Mapping[str, Any]
    back_end: str = ""  # name of what measured


class Bench:
    """A benchmark folder: ``videos/``, each with the scores of every back end used, and what comes of them."""

    def __init__(self, root: Path, grid: Grid, *, settings: Sequence[str] = ()) -> None:
        self.root, self.grid, self.settings = root, grid, tuple(settings)

    def config(self, cell: Cell) -> RunConfig:
        """What a video is made with."""
        return method_config(cell.backbone, cell.method, self.settings)

    def blocks(self, cell: Cell) -> int:
        """Of how many blocks a video is made."""
        config = self.config(cell)
        return config.latent_frames(self.grid.seconds) // config.backbone.frames_per_block

    def is_made(self, cell: Cell) -> bool:
        """Whether the video is there, complete, at least as long as asked, and made with these settings."""
        return self._record(cell) is not None

    def _record(self, cell: Cell) -> RunRecord | None:
        """The record of a video that is made; None if it is not."""
        folder, config = RunFolder(cell.folder(self.root)), self.config(cell)
        try:
            record = folder.read_record()
        except LlragError:  # not a run, or one of another version
            return None
        schedule = (ScheduledPrompt(block=0, prompt=cell.prompt),)
        wanted = record.model_copy(update={"prompt_schedule": schedule, "seed": cell.seed, "config": config})
        made = (
            record.is_complete
            and folder.video.exists()
            and not differing(record, wanted)
            and record.video_frames >= horizon_frames(config, self.grid.seconds)
        )
        return record if made else None

    def missing(self) -> list[Cell]:
        """Videos to make."""
        return [cell for cell in self.grid.cells() if not self.is_made(cell)]

    def measured(self, cell: Cell) -> tuple[float, float] | None:
        """Seconds of work and bytes for each second of a finished video; None if there is none."""
        record = self._record(cell)
        if record is None:
            return None
        seconds = record.video_frames_written / record.fps
        return record.seconds_of_work / seconds, RunFolder(cell.folder(self.root)).video.stat().st_size / seconds

    def is_scored(self, cell: Cell, back_end: BackEnd) -> bool:
        """Whether a video is there, and its figures at every horizon are."""
        folder = RunFolder(cell.folder(self.root))
        kept = _kept(folder.path / f"scores-{back_end.kind}.json", folder.video, back_end)
        return self.is_made(cell) and all(f"{seconds:g}" in kept for seconds in self.grid.horizons)

    def job(self, cell: Cell, *, device: str, dtype: str, backend: str) -> CellJob:
        """A video as a job of an engine."""
        prompts = tuple(prompt for _, prompt in self.grid.prompts)
        spec = PipelineSpec(self.config(cell), device, dtype, prompts=prompts)
        folder = cell.folder(self.root).resolve()
        video = VideoJob(spec, cell.prompt, folder, self.grid.seconds, cell.seed, existing="renew")
        return CellJob(video, made=self.is_made(cell), horizons=self.grid.horizons, backend=backend)

    def make(self, device: str, dtype: str, on_block: Callable[[Cell, int], None]) -> Iterator[Cell]:
        """Make what is missing; each backbone and method is loaded once. Yields what is done."""
        pipeline, loaded = None, ("", "")
        for cell in self.missing():
            if pipeline is None or loaded != (cell.backbone, cell.method):
                pipeline = None  # the one before is let go first
                prompts = [prompt for _, prompt in self.grid.prompts]
                pipeline = Pipeline.load(self.config(cell), device=device, dtype=dtype, prompts=prompts)
                loaded = cell.backbone, cell.method
            folder = RunFolder(cell.folder(self.root))

            def told(progress: Any, cell: Cell = cell) -> None:
                on_block(cell, progress.done)

            make_video(
                pipeline,
                cell.prompt,
                folder,
                seconds=self.grid.seconds,
                seed=cell.seed,
                existing="renew",
                on_progress=told,
            )
            yield cell

    def scores(self, cell: Cell, back_end: BackEnd) -> list[Scored]:
        """The figures of a video at every horizon."""
        found = scores_of(cell.folder(self.root), self.config(cell), self.grid.horizons, back_end)
        return [Scored(cell, seconds, found[f"{seconds:g}"], back_end.name) for seconds in self.grid.horizons]


@dataclass(frozen=True)
class CellJob:
    """One video of a benchmark, to be made unless it is there, and scored."""

    video: VideoJob
    made: bool
    horizons: tuple[float, ...]
    backend: str


def make_and_score(job: CellJob) -> None:
    """Do a job; video and scores are left in its folder."""
    if not job.made:
        generate_video(job.video)
    spec = job.video.pipeline
    scores_of(job.video.folder, spec.config, job.horizons, kept_back_end(job.backend, spec.device))


kept_back_end = cache(find_back_end)  # a worker scores many videos


def scores_of(path: Path, config: RunConfig, horizons: Sequence[float], back_end: BackEnd) -> dict[str, Any]:
    """The figures of a run by horizon; what ``scores-official.json`` and the like hold is not measured again."""
    folder = RunFolder(path)
    file = folder.path / f"scores-{back_end.kind}.json"
    kept = _kept(file, folder.video, back_end)
    for seconds in horizons:
        if f"{seconds:g}" not in kept:
            kept[f"{seconds:g}"] = measure(
                folder.video,
                frames=horizon_frames(config, seconds),
                family=family_of(config),
                back_end=back_end,
            )
            content = {
                "schema": SCHEMA,
                "back_end": back_end.name,
                "bytes": folder.video.stat().st_size,
                "horizons": kept,
            }
            hint = "make room; what was scored before is kept, and the same command goes on"
            replace_text(file, json.dumps(content) + "\n", hint=hint)
    return kept


def measure(video: Path, *, frames: int, family: Family, back_end: BackEnd) -> dict[str, Any]:
    """The figures of the first ``frames`` frames of a video, and those that only its family has."""
    opened = open_video(video)
    try:
        figures = asdict(score(islice(opened.frames, frames), fps=opened.fps, back_end=back_end))
    finally:
        opened.close()
    step = family.latent_space.temporal_ratio
    return figures | dict(family.content_metrics(_every(video, step, frames)))


def _every(video: Path, step: int, stop: int) -> Iterator[torch.Tensor]:
    """Every ``step``-th of the first ``stop`` frames of a video, which is opened when the first is asked for."""
    opened = open_video(video)
    try:
        yield from islice(opened.frames, 0, stop, step)
    finally:
        opened.close()


def _kept(file: Path, video: Path, back_end: BackEnd) -> dict[str, Any]:
    """Figures kept earlier; none if the video or the back end is another, or the file is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        same = (SCHEMA, back_end.name, video.stat().st_size)
        if (content["schema"], content["back_end"], content["bytes"]) == same and isinstance(content["horizons"], dict):
            return content["horizons"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return {}
