"""Scenes of studies: places seen by a camera that stands still, and prompts that name everything."""

from __future__ import annotations

import random
from collections.abc import Iterator

from llrag_cli.world.sprites import VERBS, Motion, Scene, Sprite, random_scene

Place = tuple[frozenset[Sprite], str, str]


def full_prompt(scene: Scene) -> str:
    """A prompt that names everything: sizes, colours and shapes of objects, motion, pattern and wall."""
    nouns = [_with_article(f"{sprite.size} {sprite.color} {sprite.shape}") for sprite in scene.sprites]
    verb = VERBS[scene.motion][0][len(nouns) > 1]
    return f"{' and '.join(nouns)} {verb} on a {scene.pattern} {scene.wall} wall"


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def new_places(rng: random.Random, known: set[Place], *, unseen: bool = True) -> Iterator[Scene]:
    """Endless scenes, each of which is added to the places ``known``; ``unseen``: their objects on their wall were
    held out of training.
    """
    while True:
        scene = still_scene(rng, unseen=unseen)
        if place_of(scene) not in known:
            known.add(place_of(scene))
            yield scene


def unlike(scene: Scene, rng: random.Random) -> Scene:
    """A scene seen in training with as many objects, and no colour of wall or object and no shape in common."""
    other = still_scene(rng, unseen=False)
    while not _nothing_in_common(scene, other):
        other = still_scene(rng, unseen=False)
    return other


def still_scene(rng: random.Random, *, unseen: bool) -> Scene:
    """A random scene whose one or two objects are always in view."""
    motion: Motion = rng.choice(("bounce", "orbit"))
    return random_scene(rng, unseen=unseen, count=rng.choice((1, 1, 2)), motion=motion)


def place_of(scene: Scene) -> Place:
    """What two scenes have in common that show the same place: objects, and colour and pattern of the wall."""
    return frozenset(scene.sprites), scene.wall, scene.pattern


def _nothing_in_common(first: Scene, second: Scene) -> bool:
    def attributes(scene: Scene) -> set[str]:
        return {scene.wall, *(word for sprite in scene.sprites for word in (sprite.color, sprite.shape))}

    return len(first.sprites) == len(second.sprites) and not attributes(first) & attributes(second)
