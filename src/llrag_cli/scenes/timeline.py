"""Where each shot of a scene lies in the video: blocks, latent frames, video frames, and what it may remember.

A scene is written in seconds and generated in blocks. A shot begins at the block whose first video frame is nearest
to the requested start, which is the sum of the seconds before it, so that rounding errors do not add up. The video has
as many blocks as one of the same length under a single prompt, and each shot has at least one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, count, pairwise
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from llrag_cli.config import RunConfig
from llrag_cli.errors import UsageError
from llrag_cli.files.settings import Config
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.scenes.schema import Remember, Scene, Shot
from llrag_cli.scenes.sources import latent_frames_of


class ReferenceSpan(Config):
    """A reference of a video: where its frames come from, and how many there are."""

    name: str = Field(description="name of the reference")
    path: Path = Field(description="picture, clip, or folder of a finished run")
    prompt: str = Field(default="", description="prompt under which its frames are encoded")
    pinned: bool = Field(default=False, description="attended by every block of the shots that may remember it")
    latent_frames: int = Field(gt=0, description="latent frames it has")


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
    given_blocks: int = Field(default=0, ge=0, description="blocks of that picture or clip, which are not generated")

    @property
    def blocks(self) -> range:
        """The blocks of the shot."""
        return range(self.start, self.stop)

    def until(self, stop: int) -> ShotSpan:
        """The shot, ended earlier."""
        return self.model_copy(update={"stop": stop, "given_blocks": min(self.given_blocks, stop - self.start)})


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
    references: tuple[ReferenceSpan, ...] = Field(default=(), description="in the order of their frames, pinned last")
    shots: tuple[ShotSpan, ...] = Field(min_length=1, description="the shots, in order")

    @model_validator(mode="after")
    def _tiled(self) -> Self:
        if self.shots[0].start != 0 or any(shot.stop <= shot.start for shot in self.shots):
            raise ValueError("shots must begin at block 0 and have at least one block each")
        if any(before.stop != after.start for before, after in pairwise(self.shots)):
            raise ValueError("shots must follow each other without gaps")
        if any(shot.given_blocks > len(shot.blocks) for shot in self.shots):
            raise ValueError("a shot cannot open with more blocks than it has")
        if any(one.pinned and not other.pinned for one, other in pairwise(self.references)):
            raise ValueError("pinned references must be the last")
        names = [*(shot.name for shot in self.shots), *self._reference_names]
        if len({*names}) < len(names):
            raise ValueError("names of shots and references must differ")
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
        return (*_allowed(shot.remember, (*self._reference_names, *earlier)), shot.name)

    def eligible_frames(self, block: int) -> dict[str, range]:
        """Latent frames before a block that it may retrieve from, by shot."""
        names, frame = set(self.eligible(block)), block * self.frames_per_block
        spans = {shot.name: self.extent(shot).latent_frames for shot in self.shots if shot.name in names}
        return {name: range(span.start, min(span.stop, frame)) for name, span in spans.items() if span.start < frame}

    def eligible_references(self, block: int) -> tuple[str, ...]:
        """Names of the references that a block may attend to."""
        return _allowed(self.shot_at(block).remember, self._reference_names)

    @property
    def _reference_names(self) -> tuple[str, ...]:
        return tuple(reference.name for reference in self.references)

    @property
    def reference_frames(self) -> dict[str, range]:
        """The numbers of the frames of each reference: those of all references are -n .. -1."""
        counts = [reference.latent_frames for reference in self.references]
        ends = list(accumulate(counts, initial=-sum(counts)))
        return {name: range(*span) for name, span in zip(self._reference_names, pairwise(ends), strict=True)}

    @property
    def reference_count(self) -> int:
        """Latent frames of all references."""
        return sum(reference.latent_frames for reference in self.references)

    @property
    def pinned_frames(self) -> int:
        """How many frames pinned references have; theirs are the last numbers before 0."""
        return sum(reference.latent_frames for reference in self.references if reference.pinned)

    def pinned_for(self, shot: ShotSpan) -> tuple[int, ...]:
        """Frames of pinned references that the blocks of a shot attend to."""
        pinned = {reference.name for reference in self.references if reference.pinned}
        names = pinned & {*self.eligible_references(shot.start)}
        return tuple(frame for name, span in self.reference_frames.items() if name in names for frame in span)

    def remembered(self, shot: ShotSpan) -> tuple[range, ...] | None:
        """Frames from before a shot that its blocks may retrieve; None: all."""
        if shot.remember == "all":
            return None
        references = self.eligible_references(shot.start)
        spans = [span for name, span in self.reference_frames.items() if name in references]
        return (*spans, *(span for name, span in self.eligible_frames(shot.start).items() if name != shot.name))

    def name_of(self, latent_frame: int) -> str:
        """The shot or, for a negative number, the reference that a latent frame is of."""
        if latent_frame >= 0:
            return self.shot_of_frame(latent_frame).name
        return next(name for name, span in self.reference_frames.items() if latent_frame in span)

    def starting_at(self, block: int) -> ShotSpan | None:
        """The shot that begins at a block, if one does."""
        return next((shot for shot in self.shots if shot.start == block), None)

    @property
    def prompts(self) -> tuple[str, ...]:
        """All prompts, of shots and references."""
        texts = [*(shot.prompt for shot in self.shots), *(reference.prompt for reference in self.references)]
        return tuple(dict.fromkeys(texts))

    @property
    def switches(self) -> bool:
        """Whether the prompt changes somewhere without a cut."""
        return any(shot.kind == "switch" for shot in self.shots)

    @property
    def is_plain(self) -> bool:
        """Whether it is one prompt from beginning to end, without references."""
        return len(self.shots) == 1 and not self.references

    def lasting(self, blocks: int) -> Timeline:
        """The timeline with its last shot made longer, up to so many blocks in all."""
        last = self.shots[-1].model_copy(update={"stop": max(blocks, self.blocks)})
        return self.model_copy(update={"shots": (*self.shots[:-1], last)})

    def with_shot(self, shot: ShotSpan) -> Timeline:
        """The timeline with a shot that takes over in the middle of another, or after the last one."""
        shots = [
            other.until(shot.start) if shot.start in other.blocks else other
            for other in self.shots
            if other.start != shot.start
        ]
        shots = sorted([*shots, shot], key=lambda each: each.start)
        return Timeline.model_validate({**dict(self), "shots": tuple(shots)})

    def unused_name(self, stem: str) -> str:
        """A name that no shot or reference has: the stem, or the stem and a number."""
        names = {*(shot.name for shot in self.shots), *self._reference_names}
        candidates = chain([stem], (f"{stem}-{number}" for number in count(2)))
        return next(name for name in candidates if name not in names)


Measure = Callable[[Path, RunConfig], int]


def plan_timeline(
    scene: Scene, config: RunConfig, *, done: Timeline | None = None, measure: Measure = latent_frames_of
) -> Timeline:
    """The timeline of a scene on a backbone.

    ``done`` is the timeline of a finished run whose shots the scene begins with: they keep their blocks, and the
    lengths of the others are counted from its end. Of files that the scene uses, ``measure`` tells the latent frames.
    Raises ``UsageError`` for a file that cannot be used as the scene says.
    """
    finished = done.shots if done else ()
    offset = done.blocks if done else 0
    lengths = [shot.seconds for shot in scene.shots[len(finished) :]]
    edges = _edges(lengths, config, continues=offset > 0) if lengths else []
    spans = list(finished)
    for index, (start, stop) in enumerate(pairwise(edges), start=len(finished)):
        spans.append(_span(scene, index, offset + start, offset + stop, spans, config, measure))
    references = [
        ReferenceSpan(
            name=name,
            path=reference.path,
            prompt=reference.prompt,
            pinned=reference.pinned,
            latent_frames=measure(reference.path, config),
        )
        for name, reference in scene.references.items()
    ]
    timeline = Timeline(
        frames_per_block=config.backbone.frames_per_block,
        temporal_ratio=config.latent_space.temporal_ratio,
        fps=config.backbone.fps,
        references=tuple(sorted(references, key=lambda reference: reference.pinned)),
        shots=tuple(spans),
    )
    _require_use(timeline, config)
    return timeline


def one_shot(
    prompt: str, config: RunConfig, *, latent_frames: int, image: Path | None = None, given_blocks: int = 0
) -> Timeline:
    """The timeline of a video under one prompt."""
    blocks = latent_frames // config.backbone.frames_per_block
    shot = ShotSpan(
        name="shot-1",
        prompt=prompt,
        start=0,
        stop=blocks,
        kind="start",
        remember="all",
        sink="shot-1",
        image=image,
        given_blocks=given_blocks or int(image is not None),
    )
    return Timeline(
        frames_per_block=config.backbone.frames_per_block,
        temporal_ratio=config.latent_space.temporal_ratio,
        fps=config.backbone.fps,
        shots=(shot,),
    )


def next_shot(done: Timeline, prompt: str, *, start: int, stop: int, cut: bool = False, name: str = "") -> ShotSpan:
    """A shot that takes over at a block: a switch, or a ``cut``, which keeps the sink."""
    return ShotSpan(
        name=done.unused_name(name or f"shot-{len(done.shots) + 1}"),
        prompt=prompt,
        start=start,
        stop=stop,
        kind="cut" if cut else "switch",
        remember="all",
        sink=done.shot_at(start - 1).sink,
    )


def _require_use(timeline: Timeline, config: RunConfig) -> None:
    """Raise ``UsageError`` if a reference would not be used, or more frames are pinned than a block can attend to."""
    memory, block = config.memory, config.backbone.frames_per_block
    if not isinstance(memory, RetrievalMemory) or not memory.retrieves:
        for reference in timeline.references:
            if not reference.pinned:
                raise UsageError(
                    f"the reference `{reference.name}` would be retrieved, but the memory strategy is "
                    f"`{memory.strategy}`",
                    hint="choose a strategy that retrieves, for example `nearest`, or set `pinned: true`",
                )
        room = None if memory.window is None else memory.window - memory.sink - block
    else:
        room = memory.retrieved
    for shot in timeline.shots:
        pinned = len(timeline.pinned_for(shot))
        if room is not None and pinned > room:
            raise UsageError(
                f"{pinned} frames of references are pinned for `{shot.name}`, but a block has room for {room}",
                hint="pin pictures, which have one frame each, or leave out `pinned`, so that frames are retrieved",
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


def _span(
    scene: Scene,
    index: int,
    start: int,
    stop: int,
    earlier: Sequence[ShotSpan],
    config: RunConfig,
    measure: Measure,
) -> ShotSpan:
    shot, name = scene.shots[index], scene.names[index]
    kind: Literal["start", "switch", "cut"] = "start" if index == 0 else "cut" if shot.cut else "switch"
    image, video = scene.opening(index)
    given = 0
    if image is not None:
        config.require_framewise()
        given = 1
    elif video is not None:
        size = config.backbone.frames_per_block
        frames = measure(video, config)
        if frames < size:
            raise UsageError(
                f"`{video.name}` is too short: it holds {frames} of the {size} latent frames of a block",
                hint=f"a clip of at least {config.video_frames(size) / config.backbone.fps:.2f} s is needed",
            )
        given = min(frames // size, stop - start)
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
        given_blocks=given,
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
