"""Generate and judge the shots: one row for each scene, seed and condition, appended to a file as it is finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.errors import LlragError, UnwritableError, UsageError
from llrag_cli.evaluation.leave_return.judge import Shares, looked_at, shares_of
from llrag_cli.evaluation.leave_return.trips import CONDITIONS, POOL_SIZE, SECONDS, Condition, Pool, Trip, trips
from llrag_cli.files.durable import AppendFile, replace_text, replacing, require_own
from llrag_cli.files.guarded import MEGABYTE, UnreadableError, read_bytes, reason_of
from llrag_cli.files.records import Record, parse_as
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.embedded.family import FAMILY as EMBEDDED
from llrag_cli.models.family import family_of
from llrag_cli.presets import with_settings

SCHEMA = 1
SEED_STRIDE = 1000  # between scenes, so that no two share their noise
GIVEN = ("A", "B")  # shots that all conditions share, and that are judged as well


@dataclass(frozen=True)
class Row:
    """One shot of one video, judged: shot C under a condition, or one of the shots before it."""

    scene: int  # from 1
    seed: int  # of the scene, from 0
    shot: str  # name of a condition, `A` or `B`
    of_a: Shares  # what it shows of place A
    of_b: Shares  # what it shows of place B
    retrieved_of_a: float | None  # share of the frames it retrieved that are of A; None: there were none

    @property
    def key(self) -> tuple[int, int, str]:
        """What the row is of."""
        return self.scene, self.seed, self.shot

    @classmethod
    def parse(cls, line: str) -> Row:
        """A row from a line of the file."""
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


class _SettingsRecord(Record):
    """The content of ``settings.json``, as ``Plan.settings``."""

    schema_: int = Field(alias="schema")
    pool: str
    scenes: int
    seeds: int
    seconds: list[float]
    config: dict[str, Any]
    weights: dict[str, str]


class Made(NamedTuple):
    """A shot of a batch of videos: frames [B, T, 3, H, W] in [0, 1], and of each retrieved frame whether it is of A."""

    frames: Tensor
    of_a: list[list[bool]]  # [B][n]


@dataclass(frozen=True)
class Plan:
    """What a study makes; it is written down, and a study continues only under the same plan."""

    pool: Pool
    scenes: int
    seeds: int
    config: RunConfig

    def __post_init__(self) -> None:
        if not 1 <= self.scenes <= POOL_SIZE or not 1 <= self.seeds <= SEED_STRIDE:
            raise UsageError(
                f"cannot study {self.scenes} scenes with {self.seeds} seeds",
                hint=f"a pool has {POOL_SIZE} scenes, and there are 1 to {SEED_STRIDE} seeds",
            )
        if not family_of(self.config).shows_sprites:
            raise UsageError("leaving and returning is judged in the sprite world", hint="leave `backbone` as it is")
        memory = self.config.memory
        if not isinstance(memory, RetrievalMemory) or not memory.retrieves:
            raise UsageError(
                f"the memory strategy `{memory.strategy}` retrieves nothing",
                hint="set `memory.strategy` to one that retrieves, and `memory.retrieved` to more than 0",
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What has to agree; the weights of the model are part of it."""
        return {
            "schema": SCHEMA,
            "pool": self.pool,
            "scenes": self.scenes,
            "seeds": self.seeds,
            "seconds": list(SECONDS),
            "config": self.config.model_dump(mode="json"),
            "weights": weights_digests(),
        }

    @property
    def trips(self) -> tuple[Trip, ...]:
        """The scenes: the first ones of the pool."""
        return trips(self.pool)[: self.scenes]

    def row_keys(self) -> Iterator[tuple[int, int, str]]:
        """All rows."""
        for scene in range(1, self.scenes + 1):
            for shot in (*GIVEN, *CONDITIONS):
                for seed in range(self.seeds):
                    yield scene, seed, shot


class Study:
    """A folder with ``settings.json``, ``rows.jsonl`` and a picture of each row, which it continues."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self.root, self.plan = root, plan
        self.rows = self._read()

    def _read(self) -> list[Row]:
        """The finished rows of the folder; raises if it was begun under another plan."""
        file = reading = self.root / "settings.json"
        for each in (file, self._file):
            require_own(each)
        if not file.exists():
            return []
        try:
            found = parse_as(_SettingsRecord, read_bytes(file)).model_dump(by_alias=True)
            reading = self._file
            rows = [Row.parse(line.decode(errors="replace")) for line in self._lines()]
        except (OSError, UnreadableError) as error:
            problem = f"`{self.root}` cannot be continued: `{reading.name}`: {reason_of(error)}"
            raise LlragError(problem, hint="choose another folder") from None
        wanted = self.plan.settings
        if differing := [name for name in wanted if found.get(name) != wanted[name]]:
            raise UsageError(
                f"`{self.root}` was begun with other settings: {', '.join(f'`{name}`' for name in differing)} differ",
                hint="choose another folder, or the settings in its settings.json",
            )
        return rows

    @property
    def _file(self) -> Path:
        return self.root / "rows.jsonl"

    def picture(self, scene: int, seed: int, shot: str) -> Path:
        """The file with the middle frame of a row's shot."""
        return self.root / "pictures" / f"{scene:02d}-seed{seed}-{shot}.png"

    def missing(self) -> list[tuple[int, int, str]]:
        """The rows still to make."""
        done = {row.key for row in self.rows}
        return [key for key in self.plan.row_keys() if key not in done]

    def run(self, pipeline: Pipeline, on_row: Callable[[Row], None] = lambda _: None) -> list[Row]:
        """Make the missing rows, and return all."""
        missing = self.missing()
        if not missing:
            return self.rows
        try:
            (self.root / "pictures").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnwritableError(self.root, (error.strerror or str(error)).lower()) from error
        replace_text(self.root / "settings.json", json.dumps(self.plan.settings, indent=1) + "\n")
        whole = sum(len(line) for line in self._lines())  # what a crash has left of a line is dropped
        with AppendFile(self._file, length=whole) as file:
            for scene, trip in enumerate(self.plan.trips, start=1):
                keys = [key for key in missing if key[0] == scene]
                for row, picture in rows_of(pipeline, trip, keys):
                    with replacing(self.picture(*row.key)) as partial:
                        picture.save(partial, format="PNG")
                    file.append(json.dumps(asdict(row)).encode() + b"\n")
                    self.rows.append(row)
                    on_row(row)
        return self.rows

    def _lines(self) -> list[bytes]:
        content = read_bytes(self._file, limit=16 * MEGABYTE) if self._file.exists() else b""
        return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def rows_of(pipeline: Pipeline, trip: Trip, keys: Sequence[tuple[int, int, str]]) -> Iterator[tuple[Row, Image.Image]]:
    """Rows of one scene and their pictures; the seeds are generated as one batch.

    Shots A and B are generated once, and replayed for each condition.
    """
    if not keys:
        return
    scene, seeds = keys[0][0], sorted({seed for _, seed, _ in keys})
    noise = [SEED_STRIDE * (scene - 1) + seed for seed in seeds]
    given, latents = first_shots(pipeline, trip, noise)
    for shot in dict.fromkeys(shot for _, _, shot in keys):
        made = given[shot] if shot in given else return_shot(pipeline, trip, CONDITIONS[shot], noise, latents)
        for place, seed in enumerate(seeds):
            if (key := (scene, seed, shot)) in keys:
                yield _row(trip, key, made.frames[place], made.of_a[place])


def _row(trip: Trip, key: tuple[int, int, str], frames: Tensor, of_a: Sequence[bool]) -> tuple[Row, Image.Image]:
    seen = looked_at(frames)
    share = sum(of_a) / len(of_a) if of_a else None
    pixels = (255 * frames[len(frames) // 2].permute(1, 2, 0)).round().byte().numpy()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return Row(*key, shares_of(trip.first, seen), shares_of(trip.second, seen), share), picture


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
    return {name: Made(_whole(parts), nothing) for name, parts in frames.items()}, torch.cat(latents, dim=1)


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
    return Made(_whole(frames), of_a)


def _whole(parts: Sequence[Tensor]) -> Tensor:
    """Frames of a shot, from [-1, 1] to [0, 1]."""
    return ((torch.cat([*parts], dim=1) + 1) / 2).clamp(0, 1)


def weights_digests() -> dict[str, str]:
    """The SHA-256 of each file of the embedded model."""
    files = sorted(EMBEDDED.bundled_encoder.parent.glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
