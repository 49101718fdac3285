"""Scenes that a video returns to, in fixed pools."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import islice

from llrag_cli.evaluation.places import full_prompt, new_places, place_of, unlike
from llrag_cli.evaluation.study_plan import POOL_SIZE, POOLS, RETURN_POOLS, Pool
from llrag_cli.world.sprites import Scene, caption

SEEDS: Mapping[Pool, int] = {"search": 20263, "confirm": 20264, "search-2": 20265, "confirm-2": 20266}
KEEP = 0.4  # probability that the vague caption names an attribute


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


@cache
def returns(pool: Pool) -> tuple[Return, ...]:
    """All of a pool, always the same. No two scenes A show the same place, in one pool or in several.

    In the first two pools, objects of A are on a wall that they were never trained with; there are few such places, so
    in the later ones they are of combinations seen in training.
    """
    known = {place_of(each.a) for earlier in RETURN_POOLS[: RETURN_POOLS.index(pool)] for each in returns(earlier)}
    rng = random.Random(SEEDS[pool])
    places = new_places(rng, known, unseen=pool in POOLS)
    return tuple(_return(scene, rng) for scene in islice(places, POOL_SIZE))


def _return(scene: Scene, rng: random.Random) -> Return:
    between = unlike(scene, rng)
    before = unlike(scene, rng)
    while place_of(before) == place_of(between):
        before = unlike(scene, rng)
    return Return(scene, between, before, caption(scene, rng, keep=KEEP))
