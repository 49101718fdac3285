from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from llrag_cli.models.embedded.vocabulary import tokenize
from llrag_cli.world.checker import judge, objects, wall_color
from llrag_cli.world.sprites import (
    MOTIONS,
    OBJECT_COLORS,
    PATTERNS,
    SHAPES,
    WALL_COLORS,
    Scene,
    Sprite,
    caption,
    clip,
    held_out,
    prompt,
    random_scene,
)


def test_same_generator_same_clip() -> None:
    scene = random_scene(random.Random(3))
    first, second = (clip(scene, 9, random.Random(4))[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("unseen", [False, True])
def test_held_out_combinations_stay_apart(unseen: bool) -> None:
    rng = random.Random(0)
    for _ in range(300):
        scene = random_scene(rng, unseen=unseen)
        assert all(held_out(sprite, scene.wall) == unseen for sprite in scene.sprites)


def test_what_leaves_a_panorama_comes_back() -> None:
    scene = Scene((Sprite("red", "circle", "large"), Sprite("white", "cross", "small")), "blue", "plain", "pan")
    for seed in range(20):
        frames, _ = clip(scene, 161, random.Random(seed))
        seen = ["red" in {each.color for each in objects(frame, wall="blue")} for frame in frames[::4]]
        changes = sum(before != after for before, after in pairwise(seen))
        if changes >= 2 and seen.index(False) < len(seen) - seen[::-1].index(True):
            return
    pytest.fail("nothing came back in any of twenty panoramas")


@pytest.mark.parametrize("wall", WALL_COLORS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_checker_reads_the_wall(wall: str, pattern: str) -> None:
    sprite = Sprite("black", "circle", "large")
    for motion in MOTIONS:
        frames, _ = clip(Scene((sprite,), wall, pattern, motion), 9, random.Random(1))
        assert [wall_color(frame) for frame in frames] == [wall] * 9


@pytest.mark.parametrize("color", OBJECT_COLORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_checker_reads_the_object(color: str, shape: str) -> None:
    for size in ("small", "large"):
        for wall in WALL_COLORS:
            if wall == color:
                continue
            scene = Scene((Sprite(color, shape, size),), wall, "striped", "orbit")
            frames, _ = clip(scene, 9, random.Random(5))
            seen = [each for frame in frames for each in objects(frame, wall=wall)]
            assert {each.color for each in seen} == {color}
            shapes = [each.shape for each in seen if each.shape]
            assert shapes.count(shape) >= 0.9 * len(shapes)


def test_the_judge_accepts_the_truth_and_refuses_another_scene() -> None:
    rng = random.Random(9)
    scene = Scene((Sprite("red", "square", "large"),), "gray", "dotted", "bounce")
    frames, _ = clip(scene, 41, rng)
    verdict = judge(frames, scene)
    assert (verdict.wall, verdict.color, verdict.all_colors, verdict.shape) == (True, True, True, True)
    other = Scene((Sprite("blue", "circle", "large"),), "pink", "dotted", "bounce")
    wrong = judge(frames, other)
    assert (wrong.wall, wrong.color, wrong.shape) == (False, False, False)


def test_every_caption_is_within_the_vocabulary() -> None:
    rng = random.Random(2)
    for _ in range(500):
        scene = random_scene(rng)
        for text in (prompt(scene), caption(scene, rng), caption(scene, rng, keep=0.5)):
            ids, unknown = tokenize(text, limit=64)
            assert unknown == [], text
            assert ids
