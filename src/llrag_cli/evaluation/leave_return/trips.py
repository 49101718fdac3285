"""Trips: place A, place B, and the return to A, as scenes of three shots; two fixed pools of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice

from llrag_cli.config import RunConfig
from llrag_cli.evaluation.leave_return.plan import timeline
from llrag_cli.evaluation.places import full_prompt, new_places, place_of, unlike
from llrag_cli.evaluation.study_plan import POOL_SIZE, POOLS, Pool
from llrag_cli.scenes.schema import Remember
from llrag_cli.scenes.timeline import Timeline
from llrag_cli.world.sprites import Scene

SEEDS: Mapping[Pool, int] = {"search": 20261, "confirm": 20262}
RETURN_PROMPTS = {1: "a shape in front of a wall", 2: "two shapes in front of a wall"}  # by the number of objects


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
        prompts = full_prompt(self.first), full_prompt(self.second), self.return_prompt
        return timeline(config, prompts, remember=remember)


@cache
def trips(pool: Pool) -> tuple[Trip, ...]:
    """All trips of a pool, always the same. No two places A are alike, in one pool or in both."""
    known = {place_of(trip.first) for earlier in POOLS[: POOLS.index(pool)] for trip in trips(earlier)}
    rng = random.Random(SEEDS[pool])
    return tuple(Trip(first, unlike(first, rng)) for first in islice(new_places(rng, known), POOL_SIZE))
