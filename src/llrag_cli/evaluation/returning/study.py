"""Generate the shots and their continuations, and judge them: one row for each scene, seed and condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Self

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.evaluation.grid import NAME
from llrag_cli.evaluation.returning.judge import Measures, Reference, looked_at, measured, reference_of
from llrag_cli.evaluation.returning.plan import (
    AGAIN,
    CONDITIONS,
    MOMENTS,
    SCENES_AT_ONCE,
    Plan,
    windows,
)
from llrag_cli.evaluation.returning.returns import Return, returns
from llrag_cli.evaluation.study import StudyFolder, StudyRow, image_of, unit_range
from llrag_cli.evaluation.study_plan import POOL_SIZE, SEED_STRIDE, Key
from llrag_cli.files.durable import create_folder, replacing
from llrag_cli.files.records import Record, parse_as
from llrag_cli.runs.video import VideoWriter
from llrag_cli.world.consistency import Look

SAMPLES: Mapping[str, int] = {"continuation": 0, "C": 1, "A": 2, "B": 3}  # addresses of noise under one seed


@dataclass(frozen=True)
class Row(StudyRow):
    """A continuation of A under a condition, or A's given return, compared with A's own frames."""

    whole: Measures
    windows: tuple[Measures, ...]  # parts of about 10 s, in order
    retrieved_of_a: float | None  # share of the frames it retrieved that are of scene A; None: there were none

    @classmethod
    def parse(cls, line: str) -> Self:
        """As ``StudyRow.parse``."""
        found = parse_as(_RowRecord, line)
        windows = tuple(Measures(**dict(each)) for each in found.windows)
        return cls(**{**dict(found), "whole": Measures(**dict(found.whole)), "windows": windows})


Share = Annotated[float, Field(ge=0, le=1)]


class _MeasuresRecord(Record):
    """As ``Measures``."""

    color: Share | None
    identity: Share | None
    size: Annotated[float, Field(ge=0)] | None
    tint: Annotated[float, Field(ge=0)]
    presence: Share | None


class _RowRecord(Record):
    """A line of ``rows.jsonl``, as ``Row``."""

    scene: int = Field(ge=1, le=POOL_SIZE)
    seed: int = Field(ge=0, lt=SEED_STRIDE)
    shot: str = Field(pattern=f"^{NAME.pattern}$")
    whole: _MeasuresRecord
    windows: tuple[_MeasuresRecord, ...] = Field(max_length=1000)
    retrieved_of_a: Share | None


class Study(StudyFolder[Row]):
    """The folder of a plan, with a strip of frames for each row: C, A, B, A again, and moments of the continuation."""

    scenes_at_once = SCENES_AT_ONCE

    def __init__(self, root: Path, plan: Plan, *, videos: int = 0) -> None:
        """The continuations of the first so many scenes are kept as ``videos``."""
        self.plan, self.videos = plan, videos
        self.returns = returns(plan.pool)[: plan.scenes]
        super().__init__(root, Row, settings=plan.settings, keys=[*plan.row_keys()])

    def make(self, pipeline: Pipeline, keys: Sequence[Key]) -> Iterator[tuple[Row, Image.Image]]:
        """As ``StudyFolder.make``. All videos are generated as one batch, the given shots once for all conditions."""
        batch = sorted({(scene, seed) for scene, seed, _ in keys})
        backs = [self.returns[scene - 1] for scene, _ in batch]
        noise = [SEED_STRIDE * (scene - 1) + seed for scene, seed in batch]
        given = given_shots(pipeline, self.plan, backs, noise)
        for shot in dict.fromkeys(shot for _, _, shot in keys):
            gone_on = None if shot == AGAIN else continuation(pipeline, self.plan, shot, backs, given.latents, noise)
            for place, (scene, seed) in enumerate(batch):
                if (key := (scene, seed, shot)) not in keys:
                    continue
                pictures = given.pictures[place]
                if gone_on is None:
                    row = Row(*key, measured(given.again[place], given.references[place]), (), None)
                else:
                    row = _row(key, gone_on, place, given.references[place])
                    pictures = [*pictures, *gone_on.pictures[place]]
                    if scene <= self.videos:
                        self._keep(key, gone_on.frames[place])
                yield row, strip(pictures)

    def _keep(self, key: Key, frames: Tensor) -> None:
        """Write the frames [T, 3, H, W] in [0, 1] of a continuation, in a folder for each condition."""
        scene, seed, shot = key
        file = self.root / "videos" / shot / f"{scene:02d}-seed{seed}.mp4"
        create_folder(file.parent)
        with replacing(file) as partial:
            writer = VideoWriter(partial, fps=self.plan.config.backbone.fps, crf=self.plan.config.video.crf)
            writer.write(2 * frames - 1)
            writer.close()


@dataclass(frozen=True)
class Given:
    """The shots of a batch of videos that all conditions share."""

    latents: Tensor  # [B, F, C, h, w], stitched: C, A, B, A again
    references: list[Reference]  # scene A, from its own frames
    again: list[list[Look]]  # its return
    pictures: list[list[Image.Image]]  # the middle frame of each shot


def given_shots(pipeline: Pipeline, plan: Plan, backs: Sequence[Return], seeds: Sequence[int]) -> Given:
    """Generate scenes C, A and B as videos of their own, each from its full prompt, under the plain window.

    The batch has one of ``backs`` and one seed for each video. A's return is the continuation of A's own video.
    """
    pipeline = pipeline.with_memory(CONDITIONS["native"].applied(plan.config))
    counts = {name: len(span) for name, span in plan.given.items()}
    latents: dict[str, Tensor] = {}
    frames: dict[str, Tensor] = {}
    for name in backs[0].prompts:
        length = counts[name] + (counts[AGAIN] if name == "A" else 0)
        prompts = [back.prompts[name] for back in backs]
        latents[name], frames[name] = own_videos(
            pipeline, prompts, latent_frames=length, seeds=seeds, sample=SAMPLES[name]
        )
    ratio = plan.config.latent_space.temporal_ratio
    seen = [looked_at(video[::ratio]) for video in frames["A"]]  # the last video frame of each latent frame
    latents["A"], latents[AGAIN] = latents["A"].tensor_split([counts["A"]], dim=1)
    frames["A"], frames[AGAIN] = frames["A"].tensor_split([plan.config.video_frames(counts["A"])], dim=1)
    middles = {name: each[:, each.shape[1] // 2] for name, each in frames.items()}
    return Given(
        latents=torch.cat([latents[name] for name in plan.given], dim=1),
        references=[reference_of(looks[: counts["A"]]) for looks in seen],
        again=[looks[counts["A"] :] for looks in seen],
        pictures=[[image_of(middles[name][video]) for name in plan.given] for video in range(len(seeds))],
    )


def own_videos(
    pipeline: Pipeline, prompts: Sequence[str], *, latent_frames: int, seeds: Sequence[int], sample: int
) -> tuple[Tensor, Tensor]:
    """Latents [B, F, C, h, w] and frames [B, T, 3, H, W] in [0, 1] of videos, one for each prompt and its seed."""
    seconds = pipeline.config.video_frames(latent_frames) / pipeline.config.backbone.fps
    with pipeline.start(prompts, seconds=seconds, seed=seeds, samples=[sample] * len(seeds)) as session:
        blocks = [*session]
        frames = unit_range([block.frames for block in blocks])
    return torch.cat([block.latents for block in blocks], dim=1), frames


@dataclass(frozen=True)
class Continuation:
    """What follows the given shots of a batch of videos."""

    frames: Tensor  # [B, T, 3, H, W] in [0, 1]
    seen: list[list[Look]]  # one for each latent frame
    of_a: list[list[bool]]  # of each retrieved frame, whether it is of scene A
    pictures: list[list[Image.Image]]
    windows: list[range]  # parts of about 10 s


def continuation(
    pipeline: Pipeline, plan: Plan, condition: str, backs: Sequence[Return], latents: Tensor, seeds: Sequence[int]
) -> Continuation:
    """Let the given latents go on under a condition's memory, all of them under the vague caption.

    The noise is the same under all conditions. Keys and values of the given frames are computed here, without their
    full prompts, so that only their picture can be remembered.
    """
    given, count = latents.shape[1], plan.latent_frames(plan.seconds)
    pipeline = pipeline.with_memory(plan.measured[condition].applied(plan.config))
    captions = [back.caption for back in backs]
    seconds = plan.config.video_frames(given + count) / plan.config.backbone.fps
    others = [plan.given["B"], plan.given["C"]]
    frames: list[Tensor] = []
    of_a: list[list[bool]] = [[] for _ in seeds]
    samples = [SAMPLES["continuation"]] * len(seeds)
    with pipeline.start(captions, seconds=seconds, seed=seeds, samples=samples, initial_latents=latents) as session:
        for block in islice(session, given // plan.config.backbone.frames_per_block, None):
            frames.append(block.frames)
            for video, chosen in enumerate(block.retrieved):
                of_a[video] += [not any(frame in span for span in others) for frame in chosen]
    videos, ratio = unit_range(frames), plan.config.latent_space.temporal_ratio
    lasts = videos[:, ratio - 1 :: ratio]  # [B, latent frames, 3, H, W], the last video frame of each
    at = [round(count * (number + 1) / MOMENTS) - 1 for number in range(MOMENTS)]
    return Continuation(
        frames=videos,
        seen=[looked_at(video) for video in lasts],
        of_a=of_a,
        pictures=[[image_of(video[max(0, number)]) for number in at] for video in lasts],
        windows=windows(count, seconds=plan.config.second_of(count)),
    )


def _row(key: Key, made: Continuation, place: int, reference: Reference) -> Row:
    seen, of_a = made.seen[place], made.of_a[place]
    return Row(
        *key,
        whole=measured(seen, reference),
        windows=tuple(measured(seen[span.start : span.stop], reference) for span in made.windows),
        retrieved_of_a=sum(of_a) / len(of_a) if of_a else None,
    )


def strip(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of one size side by side."""
    width, height = pictures[0].size
    whole = Image.new("RGB", (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number * width, 0))
    return whole


def unstripped(whole: Image.Image, count: int) -> list[Image.Image]:
    """The pictures of a strip of ``count``."""
    width = whole.width // count
    return [whole.crop((number * width, 0, (number + 1) * width, whole.height)) for number in range(count)]
