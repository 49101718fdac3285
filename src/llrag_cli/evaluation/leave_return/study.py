"""Generate and judge the shots: one row for each scene, seed and condition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.evaluation.leave_return.judge import Shares, looked_at, shares_of
from llrag_cli.evaluation.leave_return.plan import CONDITIONS, GIVEN, Condition, Plan
from llrag_cli.evaluation.leave_return.trips import Trip, trips
from llrag_cli.evaluation.study import StudyFolder, StudyRow, image_of, unit_range
from llrag_cli.evaluation.study_plan import POOL_SIZE, SEED_STRIDE, Key
from llrag_cli.files.records import Record, parse_as
from llrag_cli.presets import with_settings


@dataclass(frozen=True)
class Row(StudyRow):
    """One shot of one video, judged: shot C under a condition, or one of the shots before it."""

    of_a: Shares  # what it shows of place A
    of_b: Shares  # what it shows of place B
    retrieved_of_a: float | None  # share of the frames it retrieved that are of A; None: there were none

    @classmethod
    def parse(cls, line: str) -> Self:
        """As ``StudyRow.parse``."""
        found = parse_as(_RowRecord, line)
        shares = {name: Shares(**getattr(found, name).model_dump()) for name in ("of_a", "of_b")}
        return cls(**{**dict(found), **shares})


Share = Annotated[float, Field(ge=0, le=1)]


class _SharesRecord(Record):
    """As ``Shares``."""

    wall: Share
    color: Share
    shape: Share


class _RowRecord(Record):
    """A line of ``rows.jsonl``, as ``Row``."""

    scene: int = Field(ge=1, le=POOL_SIZE)
    seed: int = Field(ge=0, lt=SEED_STRIDE)
    shot: Literal[(*GIVEN, *CONDITIONS)]  # type: ignore[valid-type]
    of_a: _SharesRecord
    of_b: _SharesRecord
    retrieved_of_a: Share | None


class Made(NamedTuple):
    """A shot of a batch of videos: frames [B, T, 3, H, W] in [0, 1], and of each retrieved frame whether it is of A."""

    frames: Tensor
    of_a: list[list[bool]]  # [B][n]


class Study(StudyFolder[Row]):
    """The folder of a plan, with a picture of the middle frame of each shot."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self.plan = plan
        self.trips = trips(plan.pool)[: plan.scenes]
        super().__init__(root, Row, settings=plan.settings, keys=[*plan.row_keys()])

    def make(self, pipeline: Pipeline, keys: Sequence[Key]) -> Iterator[tuple[Row, Image.Image]]:
        """As ``StudyFolder.make``."""
        return rows_of(pipeline, self.trips[keys[0][0] - 1], keys)


def rows_of(pipeline: Pipeline, trip: Trip, keys: Sequence[Key]) -> Iterator[tuple[Row, Image.Image]]:
    """Rows of one scene and their pictures; the seeds are generated as one batch.

    Shots A and B are generated once, and replayed for each condition.
    """
    scene, seeds = keys[0][0], sorted({seed for _, seed, _ in keys})
    noise = [SEED_STRIDE * (scene - 1) + seed for seed in seeds]
    given, latents = first_shots(pipeline, trip, noise)
    for shot in dict.fromkeys(shot for _, _, shot in keys):
        made = given[shot] if shot in given else return_shot(pipeline, trip, CONDITIONS[shot], noise, latents)
        for place, seed in enumerate(seeds):
            if (key := (scene, seed, shot)) in keys:
                yield _row(trip, key, made.frames[place], made.of_a[place])


def _row(trip: Trip, key: Key, frames: Tensor, of_a: Sequence[bool]) -> tuple[Row, Image.Image]:
    seen = looked_at(frames)
    share = sum(of_a) / len(of_a) if of_a else None
    return Row(*key, shares_of(trip.first, seen), shares_of(trip.second, seen), share), image_of(
        frames[len(frames) // 2]
    )


def first_shots(pipeline: Pipeline, trip: Trip, seeds: Sequence[int]) -> tuple[dict[str, Made], Tensor]:
    """Shots A and B of a batch of videos, and the latents [B, F, C, h, w] of both."""
    timeline = trip.timeline(pipeline.config, "none")
    latents: list[Tensor] = []
    frames: dict[str, list[Tensor]] = {name: [] for name in GIVEN}
    with pipeline.start(timeline, seed=seeds) as session:
        for block in islice(session, timeline.shots[-1].start):
            latents.append(block.latents)
            frames[timeline.shot_at(block.index).name].append(block.frames)
    nothing: list[list[bool]] = [[] for _ in seeds]
    return {name: Made(unit_range(parts), nothing) for name, parts in frames.items()}, torch.cat(latents, dim=1)


def return_shot(pipeline: Pipeline, trip: Trip, condition: Condition, seeds: Sequence[int], latents: Tensor) -> Made:
    """Shot C under a condition, after the given latents of A and B. Its noise is the same under all conditions.

    Where the condition has a strategy of its own, A and B are replayed under it. A is so short that at most one frame
    can be retrieved in it, so that under the preset's memory every strategy leaves the same keys and values.
    """
    if condition.strategy is not None:
        pipeline = pipeline.with_memory(with_settings(pipeline.config, memory=condition.strategy))
    timeline = trip.timeline(pipeline.config, condition.remember)
    frames: list[Tensor] = []
    of_a: list[list[bool]] = [[] for _ in seeds]
    with pipeline.start(timeline, seed=seeds, committed=latents) as session:
        for block in islice(session, timeline.shots[-1].start, None):
            frames.append(block.frames)
            for video, chosen in enumerate(block.retrieved):
                of_a[video] += [timeline.name_of(frame) == "A" for frame in chosen]
    return Made(unit_range(frames), of_a)
