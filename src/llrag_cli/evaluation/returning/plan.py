"""What a study of returning scenes makes: how long, under which conditions. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

from llrag_cli.config import RunConfig
from llrag_cli.errors import UsageError, closest
from llrag_cli.evaluation.grid import Variant
from llrag_cli.evaluation.study_plan import (
    Key,
    Pool,
    Step,
    require_counts,
    require_memory_of_sprites,
    weights_digests,
)
from llrag_cli.presets import with_settings

SCHEMA = 2
GIVEN: Mapping[str, float] = {"C": 9.0, "A": 18.0, "B": 27.0, "again": 6.0}  # seconds of each shot, in their order
AGAIN = "again"  # A's given return, which the model made with A in its window; judged as well
LONGEST = 3600.0  # seconds
WINDOW = 10.0  # seconds of the parts that are also judged on their own
SCENES_AT_ONCE = 4  # which are generated as one batch
MOMENTS = 6  # pictures of a continuation, at equal distances, the last one at its end


@dataclass(frozen=True)
class Condition:
    """A memory under which the video goes on: a strategy, and settings that differ from the configuration's."""

    name: str
    strategy: str
    about: str
    settings: tuple[str, ...] = ()

    def applied(self, config: RunConfig) -> RunConfig:
        """The configuration with this memory."""
        return with_settings(config, self.settings, memory=self.strategy)


CONDITIONS: Mapping[str, Condition] = {
    condition.name: condition
    for condition in (
        Condition("native", "none", "the plain window"),
        Condition("nearest", "nearest", "the nearest frames"),
        Condition("random", "random", "random old frames"),
        Condition("first", "deep-sink", "the first K frames"),
        Condition("times", "nearest", "relative times alone", ("memory.retrieved=0",)),
    )
}


def require_condition(name: str) -> Condition:
    """The condition of a name; raises ``UsageError`` if there is none."""
    if name not in CONDITIONS:
        raise UsageError(f"unknown condition `{name}`", hint=closest(name, CONDITIONS))
    return CONDITIONS[name]


def condition_of(variant: Variant) -> Condition:
    """A variant of the nearest frames as a condition; raises ``UsageError`` if its name is taken."""
    if variant.name in (AGAIN, *CONDITIONS):
        raise UsageError(f"a variant cannot be named `{variant.name}`", hint="that is a condition; take another name")
    return Condition(variant.name, "nearest", " ".join(variant.settings), variant.settings)


@dataclass(frozen=True)
class Plan:
    """What a study makes; it is written down, and a study continues only under the same plan."""

    pool: Pool
    scenes: int
    seeds: int
    seconds: float  # of the continuation
    conditions: tuple[str, ...]
    config: RunConfig
    variants: tuple[Variant, ...] = ()  # more conditions

    def __post_init__(self) -> None:
        require_counts(self.scenes, self.seeds)
        if not isfinite(self.seconds) or not 0 < self.seconds <= LONGEST:
            raise UsageError(
                f"a scene cannot go on for {self.seconds:g} seconds", hint=f"more than 0, at most {LONGEST:g}"
            )
        for name in self.conditions:
            require_condition(name)
        names = [*self.conditions, *(variant.name for variant in self.variants)]
        if not names or len({*names}) < len(names):
            raise UsageError("each condition is measured once", hint="name at least one, and none twice")
        memory = require_memory_of_sprites(self.config, judged="returning scenes are")
        if memory.strategy != "nearest":
            raise UsageError(
                f"the conditions choose the memory strategy, and the configuration has `{memory.strategy}`",
                hint="leave `memory.strategy` at `nearest`",
            )
        for condition in self.measured.values():
            condition.applied(self.config)

    @property
    def measured(self) -> dict[str, Condition]:
        """All conditions by name, variants last."""
        known = {name: CONDITIONS[name] for name in self.conditions}
        return known | {variant.name: condition_of(variant) for variant in self.variants}

    @property
    def settings(self) -> dict[str, Any]:
        """What has to agree; the weights of the model are part of it."""
        return {
            "schema": SCHEMA,
            "pool": self.pool,
            "scenes": self.scenes,
            "seeds": self.seeds,
            "given_seconds": dict(GIVEN),
            "seconds": self.seconds,
            "conditions": list(self.measured),
            "variants": {variant.name: list(variant.settings) for variant in self.variants},
            "config": self.config.model_dump(mode="json"),
            "weights": self._weights(),
        }

    def _weights(self) -> dict[str, str]:
        """Digests of all files, those of a variant that has an encoder of its own under its name."""
        found = weights_digests(self.config)
        for name, condition in self.measured.items():
            if any(setting.startswith("memory.encoder") for setting in condition.settings):
                more = weights_digests(condition.applied(self.config))
                found |= {f"{name}: {file}": digest for file, digest in more.items() if file not in found}
        return found

    def row_keys(self) -> Iterator[Key]:
        """All rows."""
        for scene in range(1, self.scenes + 1):
            for shot in (AGAIN, *self.measured):
                for seed in range(self.seeds):
                    yield scene, seed, shot

    def steps(self, missing: Collection[Key]) -> list[Step]:
        """What rows take that are missing. The given shots are needed for all, also if A's return has its row."""
        videos = len({key[:2] for key in missing})
        spans = self.given
        given, count = sum(map(len, spans.values())), self.latent_frames(self.seconds)
        rows = {shot: sum(key[2] == shot for key in missing) for shot in (AGAIN, *self.measured)}
        shared = Step("given", "scenes C, A and B, and A again", videos, videos * given, 0, rows[AGAIN] * len(spans))
        pictures = len(spans) + MOMENTS
        steps = [
            Step(name, condition.about, videos, videos * count, videos * given, videos * pictures)
            for name, condition in self.measured.items()
            if (videos := rows[name])
        ]
        return [shared, *steps] if missing else []

    def latent_frames(self, seconds: float) -> int:
        """The latent frames of the whole blocks that come closest to a length, at least one block."""
        backbone = self.config.backbone
        block_seconds = backbone.frames_per_block * self.config.latent_space.temporal_ratio / backbone.fps
        return backbone.frames_per_block * max(1, round(seconds / block_seconds))

    @property
    def given(self) -> dict[str, range]:
        """The latent frames of each given shot in the stitched video."""
        spans: dict[str, range] = {}
        stop = 0
        for name, seconds in GIVEN.items():
            start, stop = stop, stop + self.latent_frames(seconds)
            spans[name] = range(start, stop)
        return spans

    @property
    def moments(self) -> list[float]:
        """Times in seconds of the pictures of a continuation."""
        seconds = self.config.second_of(self.latent_frames(self.seconds))
        return [seconds * (number + 1) / MOMENTS for number in range(MOMENTS)]


def windows(count: int, *, seconds: float) -> list[range]:
    """Frames of a continuation in parts of about 10 s."""
    parts = min(count, max(1, round(seconds / WINDOW)))
    edges = [round(count * part / parts) for part in range(parts + 1)]
    return [range(start, stop) for start, stop in pairwise(edges)]
