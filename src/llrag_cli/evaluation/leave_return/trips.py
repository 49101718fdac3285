"""Trips: place A, place B, and the return to A, as scenes of three shots; two fixed pools of them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from llrag_cli.config import RunConfig
from llrag_cli.scenes.schema import Remember, Shot
from llrag_cli.scenes.schema import Scene as ShotList
from llrag_cli.scenes.timeline import Timeline, plan_timeline
from llrag_cli.world.sprites import VERBS, Scene, Sprite, random_scene

Pool = Literal["search", "confirm"]
POOLS: tuple[Pool, ...] = get_args(Pool)
POOL_SIZE = 48  # trips of each pool
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


def full_prompt(scene: Scene) -> str:
    """A prompt that names everything: sizes, colours and shapes of objects, motion, pattern and wall."""
    nouns = [_with_article(f"{sprite.size} {sprite.color} {sprite.shape}") for sprite in scene.sprites]
    verb = VERBS[scene.motion][0][len(nouns) > 1]
    return f"{' and '.join(nouns)} {verb} on a {scene.pattern} {scene.wall} wall"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


@cache
def trips(pool: Pool) -> tuple[Trip, ...]:
    """All trips of a pool, always the same. No two places A are alike, in one pool or in both."""
    known = {_place(trip.first) for earlier in POOLS[: POOLS.index(pool)] for trip in trips(earlier)}
    rng = random.Random(SEEDS[pool])
    found: list[Trip] = []
    while len(found) < POOL_SIZE:
        first = _still_scene(rng, unseen=True)
        if _place(first) in known:
            continue
        known.add(_place(first))
        second = _still_scene(rng, unseen=False)
        while not _nothing_in_common(first, second):
            second = _still_scene(rng, unseen=False)
        found.append(Trip(first, second))
    return tuple(found)


def _still_scene(rng: random.Random, *, unseen: bool) -> Scene:
    """A random scene whose one or two objects are always in view."""
    scene = random_scene(rng, unseen=unseen)
    while scene.motion == "pan":
        scene = random_scene(rng, unseen=unseen)
    return scene


def _place(scene: Scene) -> tuple[frozenset[Sprite], str, str]:
    return frozenset(scene.sprites), scene.wall, scene.pattern


def _nothing_in_common(first: Scene, second: Scene) -> bool:
    """Whether two scenes have as many objects, and no colour of wall or object and no shape in common."""

    def attributes(scene: Scene) -> set[str]:
        return {scene.wall, *(word for sprite in scene.sprites for word in (sprite.color, sprite.shape))}

    return len(first.sprites) == len(second.sprites) and not attributes(first) & attributes(second)
