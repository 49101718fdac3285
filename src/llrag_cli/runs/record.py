"""``run.json``: what a run was made from, how far it is and what it cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from llrag_cli.cache.tiers import EXACT
from llrag_cli.config import RunConfig
from llrag_cli.errors import DamagedRunError, RunDiffersError, RunSchemaError, UsageError
from llrag_cli.files.guarded import MEGABYTE, UnreadableError, parse_json, reason_of, shortened
from llrag_cli.files.records import Record, parse_as
from llrag_cli.models.layouts import CONTIGUOUS, Layout
from llrag_cli.runs.statistics import ArchiveUse
from llrag_cli.scenes.timeline import Timeline

SCHEMA: Literal[3] = 3
LONGEST = 10.0**7  # seconds of video
LARGEST = 16 * MEGABYTE  # bytes of `run.json`

Count = Annotated[int, Field(ge=0, le=2**53)]
Size = Annotated[int, Field(ge=1, le=2**20)]
MOST_WORK = 10.0**12  # seconds
Duration = Annotated[float, Field(ge=0, le=MOST_WORK)]


class RunRecord(Record):
    """The content of ``run.json``."""

    schema_version: Literal[3] = SCHEMA
    status: Literal["running", "complete", "interrupted", "failed"]
    error: str | None = Field(default=None, description="why the run failed")
    title: str = Field(default="", description="of the scene")
    timeline: Timeline = Field(description="the shots, by block, and the references")
    unknown_words: tuple[str, ...] = Field(default=(), description="words that the embedded model does not know")
    seed: int = Field(ge=-(2**63), lt=2**64)
    seconds: float = Field(gt=0, le=LONGEST, description="requested length")
    latent_frames: int = Field(ge=1, le=2**40)
    latent_shape: tuple[Size, Size, Size] = Field(description="of a latent frame: channels, height, width")
    video_frames: int = Field(ge=1, le=2**48)
    fps: int = Field(ge=1, le=1000)
    device: str
    dtype: Literal["float32", "bfloat16", "float16"]
    gpu_settings: dict[str, str] = Field(default_factory=dict, description="which kernels a GPU may choose")
    attention: str = Field(default="", max_length=100, description="diffusers' attention backend; empty: not recorded")
    compiled: bool = Field(default=False, description="the backbone's layers were compiled")
    decoder_layout: Layout = Field(default=CONTIGUOUS, description="memory layout of the decoder's convolutions")
    decoder_compiled: bool = Field(default=False, description="norms and activations of the decoder were compiled")
    cuda_graphs: bool = Field(default=False, description="denoising passes were recorded as CUDA graphs")
    versions: dict[str, str] = Field(description="of Python and packages")
    config: RunConfig
    resumed_at: tuple[Count, ...] = Field(default=(), description="blocks at which the run was resumed")
    blocks_committed: Count = 0
    video_frames_written: Count = 0
    video_crc32: Count | None = Field(default=None, description="of `video.mp4`, once the run is complete")
    seconds_of_work: Duration = 0.0
    frames_per_second: Duration = Field(default=0.0, description="video frames per second of work")
    seconds_by_part: dict[str, Duration] = Field(default_factory=dict, description="wall time by part of a block")
    archive: ArchiveUse | None = None
    peak_memory_bytes: Count | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        backbone, timeline = self.config.backbone, self.timeline
        if self.latent_frames % backbone.frames_per_block:
            raise ValueError(f"{self.latent_frames} latent frames are not whole blocks of {backbone.frames_per_block}")
        if timeline.frames_per_block != backbone.frames_per_block or timeline.fps != self.fps:
            raise ValueError("`frames_per_block` and `fps` of `timeline` are not those of `config.backbone`")
        if timeline.latent_frames != self.latent_frames:
            raise ValueError(f"`timeline` has {timeline.latent_frames} latent frames, not {self.latent_frames}")
        if self.latent_shape[1:] != (backbone.height, backbone.width) or self.fps != backbone.fps:
            raise ValueError("`latent_shape` and `fps` are not those of `config.backbone`")
        return self

    @property
    def prompt(self) -> str:
        """The prompt that the video starts with."""
        return self.timeline.shots[0].prompt

    @property
    def blocks(self) -> int:
        """Blocks of the whole video."""
        return self.timeline.blocks

    @property
    def is_complete(self) -> bool:
        """Whether the whole video was generated."""
        return self.status == "complete"

    def updated(self, **changes: Any) -> RunRecord:
        """A validated copy with some fields changed."""
        return RunRecord.model_validate({**dict(self), **changes})

    def lasting(self, seconds: float) -> RunRecord:
        """The record of a run of at least ``seconds``, whose last shot is longer."""
        blocks = self.config.latent_frames(seconds) // self.config.backbone.frames_per_block
        return self.with_timeline(self.timeline.lasting(blocks), seconds=max(seconds, self.seconds))

    def with_timeline(self, timeline: Timeline, **changes: Any) -> RunRecord:
        """The record of another timeline, with the lengths that follow from it."""
        lengths = {"latent_frames": timeline.latent_frames, "video_frames": timeline.video_frames}
        return self.updated(timeline=timeline, **lengths, **changes)

    def opening_with(self, **changes: Any) -> RunRecord:
        """The record with another beginning: ``prompt``, ``image``, ... of the first shot."""
        first, *others = self.timeline.shots
        shots = (first.model_copy(update=changes), *others)
        return self.model_copy(update={"timeline": self.timeline.model_copy(update={"shots": shots})})

    def to_json(self) -> str:
        """The text of ``run.json``."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def require_length(seconds: float) -> None:
    """Raise an error unless a video can last ``seconds``."""
    if not 0 < seconds <= LONGEST:
        raise UsageError(
            f"a video cannot last {seconds:g} seconds", hint=f"its length is more than 0 and at most {LONGEST:g} s"
        )


def require_seed(seed: int) -> None:
    """Raise an error unless noise can be drawn from ``seed``."""
    if not -(2**63) <= seed < 2**64:
        raise UsageError(f"the seed {shortened(seed)} is too large", hint="a seed is less than 2^64")


def parse_record(text: str | bytes, path: Path) -> RunRecord:
    """The record in the text of the file ``path``; raises ``LlragError`` for a damaged one or another schema."""
    try:
        content = parse_json(text)
        if isinstance(content, dict) and "config" in content:
            schema = content.get("schema_version", 1)
            if schema == 2:
                text = json.dumps(_from_schema_2(content))
            elif type(schema) is int and schema != SCHEMA:
                raise RunSchemaError(path, schema=schema, supported=SCHEMA)
        return parse_as(RunRecord, text)
    except UnreadableError as error:
        raise DamagedRunError(path, reason_of(error)) from None
    except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError):
        raise DamagedRunError(path, "it is not complete") from None


def _from_schema_2(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a record of schema 2, which had prompts by block instead of shots."""
    entries, image = content.pop("prompt_schedule"), content.pop("image")
    backbone = content["config"]["backbone"]
    blocks = content["latent_frames"] // backbone["frames_per_block"]
    edges = [*(entry["block"] for entry in entries), blocks]
    shots: list[dict[str, Any]] = [
        {
            "name": f"shot-{number}",
            "prompt": entry["prompt"],
            "start": start,
            "stop": stop,
            "kind": "switch" if start else "start",
            "remember": "all",
            "sink": "shot-1",
        }
        for number, (entry, (start, stop)) in enumerate(zip(entries, pairwise(edges), strict=True), start=1)
        if stop > start
    ]
    if image is not None:
        shots[0] |= {"image": image, "given_blocks": 1}
    timeline = {"frames_per_block": backbone["frames_per_block"], "fps": content["fps"], "shots": shots}
    return {**content, "schema_version": SCHEMA, "timeline": timeline}


def differing(before: RunRecord, now: RunRecord) -> list[str]:
    """Names of the settings that two records disagree on, dotted as in a preset: ``memory.guard``.

    Settings that do not change the video are left out: the preset's name, and which exact tier the archive is on.
    """
    different = {*_differing_shots(before.timeline, now.timeline)}
    different |= {name for name in ("seed", "dtype") if getattr(before, name) != getattr(now, name)}
    names = [name for name in _ORDER if name in different]
    return names + sorted(set(_differing(before.config, now.config)) - {"name", "about", "checked"})


_ORDER = ("prompt", "shots", "seed", "image", "video", "references", "dtype")


def _differing_shots(before: Timeline, now: Timeline) -> Iterator[str]:
    """What the shots of ``now`` have in another way; the run may have more shots, and its last one may be longer."""
    (first, *others), (now_first, *now_others) = before.shots, now.shots
    for name in ("prompt", "image", "video"):
        if getattr(first, name) != getattr(now_first, name):
            yield name
    same = all(
        one.model_dump(exclude={"stop"}) == other.model_dump(exclude={"stop"})
        for one, other in zip(others, now_others, strict=False)
    )
    if not same or len(now_others) > len(others):
        yield "shots"
    if before.references != now.references:
        yield "references"


def _differing(before: BaseModel, now: BaseModel, prefix: str = "") -> Iterator[str]:
    for name in type(before).model_fields.keys() & type(now).model_fields.keys():
        one, other = getattr(before, name), getattr(now, name)
        if isinstance(one, BaseModel) and isinstance(other, BaseModel):
            yield from _differing(one, other, f"{prefix}{name}.")
        elif one != other and not (name == "archive" and {one, other} <= {"auto", *EXACT}):
            yield f"{prefix}{name}"


def require_same(before: RunRecord, now: RunRecord, path: Path) -> None:
    """Raise an error if two records disagree on a setting that changes the video."""
    names = differing(before, now)
    if names:
        raise RunDiffersError(path, names)
