"""Where each shot of a scene lies in the video: blocks, latent frames, video frames, and what it may remember.

A scene is written in seconds and generated in blocks. A shot begins at the block whose first video frame is nearest
to the requested start, which is the sum of the seconds before it, so that rounding errors do not add up. The video has
as many blocks as one of the same length under a single prompt, and each shot has at least one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from llrag_cli.config import RunConfig
from llrag_cli.files.settings import Config
from llrag_cli.scenes.schema import Remember, Scene, Shot


class ShotSpan(Config):
    """A shot on the timeline: its blocks, and everything that changes at its first one."""

    name: str = Field(description="name of the shot")
    prompt: str = Field(description="full prompt, with the style of the scene")
    start: int = Field(ge=0, description="first block")
    stop: int = Field(gt=0, description="first block after the shot")
    kind: Literal["start", "switch", "cut"] = Field(description="how the shot begins")
    remember: Remember = Field(description="earlier shots and references it may retrieve from, besides itself")
    sink: str = Field(description="name of the shot whose first frames are the sink")
    recache: Literal["keep", "renew", "none"] | None = Field(
        default=None, description="at a switch; null: the setting `memory.recache`"
    )
    seed: int | None = Field(default=None, description="seed of its noise; null: the seed of the run")
    image: Path | None = Field(default=None, description="picture that opens it")
    video: Path | None = Field(default=None, description="clip that opens it")

    @property
    def blocks(self) -> range:
        """The blocks of the shot."""
        return range(self.start, self.stop)


@dataclass(frozen=True)
class Extent:
    """What a stretch of blocks is in frames and seconds of the video."""

    blocks: range
    latent_frames: range
    video_frames: range
    start_seconds: float
    end_seconds: float


class Timeline(Config):
    """The shots of a video, one after the other from block 0, without gaps. Part of a run's record."""

    frames_per_block: int = Field(gt=0, description="latent frames of a block")
    temporal_ratio: int = Field(default=4, gt=0, description="video frames of each latent frame but the first")
    fps: int = Field(gt=0, description="video frames a second")
    references: tuple[str, ...] = Field(default=(), description="names of the references")
    shots: tuple[ShotSpan, ...] = Field(min_length=1, description="the shots, in order")

    @model_validator(mode="after")
    def _tiled(self) -> Self:
        if self.shots[0].start != 0 or any(shot.stop <= shot.start for shot in self.shots):
            raise ValueError("shots must begin at block 0 and have at least one block each")
        if any(before.stop != after.start for before, after in pairwise(self.shots)):
            raise ValueError("shots must follow each other without gaps")
        return self

    @property
    def blocks(self) -> int:
        """Blocks of the video."""
        return self.shots[-1].stop

    @property
    def latent_frames(self) -> int:
        """Latent frames of the video."""
        return self.blocks * self.frames_per_block

    @property
    def video_frames(self) -> int:
        """Video frames of the video: 4(n-1)+1 for n latent frames."""
        return self._first_video_frame(self.latent_frames)

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return self.video_frames / self.fps

    def extent(self, shot: ShotSpan) -> Extent:
        """Frames and times of a shot."""
        start, stop = shot.start * self.frames_per_block, shot.stop * self.frames_per_block
        video = range(self._first_video_frame(start), self._first_video_frame(stop))
        return Extent(shot.blocks, range(start, stop), video, video.start / self.fps, video.stop / self.fps)

    def _first_video_frame(self, latent_frame: int) -> int:
        """The first video frame that a latent frame decodes to: frame 0 is 1 of them."""
        return max(0, self.temporal_ratio * (latent_frame - 1) + 1)

    def shot_at(self, block: int) -> ShotSpan:
        """The shot that a block belongs to."""
        for shot in self.shots:
            if block in shot.blocks:
                return shot
        raise IndexError(f"block {block} of {self.blocks}")

    def shot_of_frame(self, latent_frame: int) -> ShotSpan:
        """The shot that a latent frame belongs to."""
        return self.shot_at(latent_frame // self.frames_per_block)

    def eligible(self, block: int) -> tuple[str, ...]:
        """Names of the shots and references that a block may retrieve from, its own shot included."""
        shot = self.shot_at(block)
        earlier = [other.name for other in self.shots if other.start < shot.start]
        return (*_allowed(shot.remember, (*self.references, *earlier)), shot.name)

    def eligible_frames(self, block: int) -> dict[str, range]:
        """Latent frames before a block that it may retrieve from, by shot."""
        names, frame = set(self.eligible(block)), block * self.frames_per_block
        spans = {shot.name: self.extent(shot).latent_frames for shot in self.shots if shot.name in names}
        return {name: range(span.start, min(span.stop, frame)) for name, span in spans.items() if span.start < frame}

    def eligible_references(self, block: int) -> tuple[str, ...]:
        """Names of the references that a block may attend to."""
        return _allowed(self.shot_at(block).remember, self.references)


def plan_timeline(scene: Scene, config: RunConfig, *, done: Timeline | None = None) -> Timeline:
    """The timeline of a scene on a backbone.

    ``done`` is the timeline of a finished run whose shots the scene begins with: they keep their blocks, and the
    lengths of the others are counted from its end.
    """
    finished = done.shots if done else ()
    offset = done.blocks if done else 0
    lengths = [shot.seconds for shot in scene.shots[len(finished) :]]
    edges = _edges(lengths, config, continues=offset > 0) if lengths else []
    spans = list(finished)
    for index, (start, stop) in enumerate(pairwise(edges), start=len(finished)):
        spans.append(_span(scene, index, offset + start, offset + stop, spans))
    return Timeline(
        frames_per_block=config.backbone.frames_per_block,
        temporal_ratio=config.latent_space.temporal_ratio,
        fps=config.backbone.fps,
        references=tuple(scene.references),
        shots=tuple(spans),
    )


def _edges(lengths: Sequence[float], config: RunConfig, *, continues: bool) -> list[int]:
    """First blocks of shots of these lengths in seconds, and the block after the last.

    ``continues``: a finished run comes before, so that no block begins with the single-frame latent of a video.
    """
    fps, ratio = config.backbone.fps, config.latent_space.temporal_ratio
    block_frames = config.backbone.frames_per_block * ratio
    missing = 0 if continues else ratio - 1  # video frames that the first latent frame does not have
    asked = [fps * seconds + missing for seconds in accumulate(lengths)]  # where each shot ends, in video frames
    edges = [0]
    for end in asked[:-1]:
        edges.append(max(math.floor(end / block_frames + 0.5), edges[-1] + 1))
    video_frames = math.ceil(round(asked[-1], 6))
    edges.append(max(math.ceil(video_frames / block_frames), len(lengths)))
    for index in range(len(lengths) - 1, 0, -1):  # room for the shots after it
        edges[index] = min(edges[index], edges[index + 1] - 1)
    return edges


def _span(scene: Scene, index: int, start: int, stop: int, earlier: Sequence[ShotSpan]) -> ShotSpan:
    shot, name = scene.shots[index], scene.names[index]
    kind: Literal["start", "switch", "cut"] = "start" if index == 0 else "cut" if shot.cut else "switch"
    image, video = scene.opening(index)
    return ShotSpan(
        name=name,
        prompt=scene.prompt(index),
        start=start,
        stop=stop,
        kind=kind,
        remember=shot.remember,
        sink=_sink(shot, name, kind, earlier),
        recache=shot.recache if kind == "switch" else None,
        seed=shot.seed,
        image=image,
        video=video,
    )


def _allowed(remember: Remember, names: Sequence[str]) -> tuple[str, ...]:
    """The names that a shot may remember, in their order."""
    if remember == "none":
        return ()
    return tuple(names) if remember == "all" else tuple(name for name in names if name in remember)


def _sink(shot: Shot, name: str, kind: str, earlier: Sequence[ShotSpan]) -> str:
    """A switch keeps the sink; a cut keeps it if the shot may remember the shot it is of, or is set to."""
    if kind == "start":
        return name
    current = earlier[-1].sink
    keeps = kind == "switch" or shot.sink == "keep" or (shot.sink is None and bool(_allowed(shot.remember, [current])))
    return current if keeps else name
