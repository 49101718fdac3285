"""Trips: place A, place B, and the return to A, as scenes of three shots; two fixed pools of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice

from llrag_cli.config import RunConfig
from llrag_cli.evaluation.places import full_prompt, new_places, place_of, unlike
from llrag_cli.evaluation.study_plan import POOL_SIZE, POOLS, Pool
from llrag_cli.scenes.schema import Remember, Shot
from llrag_cli.scenes.schema import Scene as ShotList
from llrag_cli.scenes.timeline import Timeline, plan_timeline
from llrag_cli.world.sprites import Scene

SEEDS: Mapping[Pool, int] = {"search": 20261, "confirm": 20262}
SECONDS = (8.0, 4.0, 5.0)  # of A, B and C
RETURN_PROMPTS = {1: "a shape in front of a wall", 2: "two shapes in front of a wall"}  # by the number of objects


@dataclass(frozen=True)
class Condition:
    """What shot C may remember."""

    name: str
    remember: Remember
    about: str
    strategy: str | None = None  # instead of the configuration's


CONDITIONS: Mapping[str, Condition] = {
    condition.name: condition
    for condition in (
        Condition("memory", ("A",), "frames of A, by the memory strategy"),
        Condition("random", ("A",), "random frames of A", "random"),
        Condition("all", "all", "frames of A and B, by the memory strategy"),
        Condition("wrong", ("B",), "frames of B, the wrong place"),
        Condition("none", "none", "nothing"),
    )
}


@dataclass(frozen=True)
class Trip:
    """Place A, whose objects on their wall are held out of training, and a place B that has nothing of it."""

    first: Scene
    second: Scene

    @property
    def return_prompt(self) -> str:
        """The prompt of shot C, without colours, shapes and patterns."""
        return RETURN_PROMPTS[len(self.first.sprites)]

    def timeline(self, config: RunConfig, remember: Remember) -> Timeline:
        """The three shots, of which the last may remember the shots named; both cuts drop the sink."""
        shots = (
            Shot(name="A", prompt=full_prompt(self.first), seconds=SECONDS[0]),
            Shot(
                name="B",
                prompt=full_prompt(self.second),
                seconds=SECONDS[1],
                cut=True,
                remember="none",
                sink="drop",
            ),
            Shot(
                name="C",
                prompt=self.return_prompt,
                seconds=SECONDS[2],
                cut=True,
                remember=remember,
                sink="drop",
            ),
        )
        return plan_timeline(ShotList(shots=shots), config)


@cache
def trips(pool: Pool) -> tuple[Trip, ...]:
    """All trips of a pool, always the same. No two places A are alike, in one pool or in both."""
    known = {place_of(trip.first) for earlier in POOLS[: POOLS.index(pool)] for trip in trips(earlier)}
    rng = random.Random(SEEDS[pool])
    return tuple(Trip(first, unlike(first, rng)) for first in islice(new_places(rng, known), POOL_SIZE))
