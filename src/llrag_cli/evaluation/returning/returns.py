"""Scenes that a video returns to, in two fixed pools, and the conditions that are compared."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice

from llrag_cli.config import RunConfig
from llrag_cli.errors import UsageError, closest
from llrag_cli.evaluation.places import POOL_SIZE, POOLS, Pool, full_prompt, new_places, place_of, unlike
from llrag_cli.presets import with_settings
from llrag_cli.world.sprites import Scene, caption

SEEDS: Mapping[Pool, int] = {"search": 20263, "confirm": 20264}
KEEP = 0.4  # probability that the vague caption names an attribute
GIVEN: Mapping[str, float] = {"C": 9.0, "A": 18.0, "B": 27.0, "again": 6.0}  # seconds of each shot, in their order


@dataclass(frozen=True)
class Return:
    """Scene A, two others that have nothing of it, and the caption under which A goes on."""

    a: Scene
    b: Scene
    c: Scene
    caption: str

    @property
    def prompts(self) -> dict[str, str]:
        """The full prompts of the three scenes."""
        return {"A": full_prompt(self.a), "B": full_prompt(self.b), "C": full_prompt(self.c)}


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
        Condition("nearest", "nearest", "retrieves the nearest frames"),
        Condition("random", "random", "retrieves random old frames"),
        Condition("first", "deep-sink", "retrieves the first K frames"),
        Condition("times", "nearest", "relative times, nothing retrieved", ("memory.retrieved=0",)),
    )
}


def require_condition(name: str) -> Condition:
    """The condition of a name; raises ``UsageError`` if there is none."""
    if name not in CONDITIONS:
        raise UsageError(f"unknown condition `{name}`", hint=closest(name, CONDITIONS))
    return CONDITIONS[name]


@cache
def returns(pool: Pool) -> tuple[Return, ...]:
    """All of a pool, always the same. No two scenes A show the same place, in one pool or in both."""
    known = {place_of(each.a) for earlier in POOLS[: POOLS.index(pool)] for each in returns(earlier)}
    rng = random.Random(SEEDS[pool])
    return tuple(_return(scene, rng) for scene in islice(new_places(rng, known), POOL_SIZE))


def _return(scene: Scene, rng: random.Random) -> Return:
    between = unlike(scene, rng)
    before = unlike(scene, rng)
    while place_of(before) == place_of(between):
        before = unlike(scene, rng)
    return Return(scene, between, before, caption(scene, rng, keep=KEEP))
