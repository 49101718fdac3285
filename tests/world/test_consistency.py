from __future__ import annotations

import random

import pytest
import torch

from llrag_cli.world.checker import Seen
from llrag_cli.world.consistency import Look, appearances, consistency, looks
from llrag_cli.world.sprites import Scene, Sprite, Track, move, render


def shown(*colors: str, wall: str = "gray", shape: str | None = "circle") -> Look:
    return Look(wall, (0.5, 0.5, 0.5), tuple(Seen(color, shape, 200) for color in colors))


LAP = [shown("red")] * 3 + [shown()] * 3 + [shown("blue")] * 3 + [shown()] * 3 + [shown("green")] * 3 + [shown()] * 3


def test_a_world_that_repeats_itself_is_consistent() -> None:
    found = consistency(LAP * 3, reference=18, stretch=range(18, 54))
    assert (found.color, found.identity, found.background) == (1, 1, 1)
    assert found.visible == pytest.approx(0.5)
    assert found.returns == pytest.approx(4 / 6)  # the reference did not see red come after green


def test_turning_back_is_a_return() -> None:
    back = LAP[::-1]
    assert consistency([*LAP, *back], reference=18, stretch=range(18, 36)).returns == 1


def test_other_objects_and_walls_are_told() -> None:
    strange = [shown("black")] * 3 + [shown()] * 3 + [shown("red", wall="pink", shape="cross")] * 3 + [shown()] * 3
    found = consistency([*LAP, *strange], reference=18, stretch=range(18, 30))
    assert found.color == pytest.approx(0.5)
    assert found.identity == 0
    assert found.returns == 0
    assert found.background == pytest.approx(0.75)


def test_an_object_that_flickers_appears_once() -> None:
    assert appearances([shown("red"), shown(), shown("red"), shown(), shown(), shown("red")]) == [
        (0, "red"),
        (5, "red"),
    ]


def test_nothing_in_view_is_not_judged() -> None:
    found = consistency([*LAP, *[shown()] * 6], reference=18, stretch=range(18, 24))
    assert found.color is found.identity is found.returns is None
    assert found.visible == 0


def test_rendered_worlds_are_consistent() -> None:
    sprites = (Sprite("red", "circle", "large"), Sprite("white", "cross", "large"))
    scene = Scene(sprites, "blue", "striped", "pan", 160)
    track = move(scene, 480, random.Random(1))
    straight = Track(track.centers[:1] - 2 * torch.arange(480)[:, None, None] * torch.tensor([1.0, 0.0]), track.camera)
    ahead = torch.remainder(straight.centers[..., 0] - 32 + 80, 160) - 80
    straight.centers[..., 0] = 32 + ahead
    frames, _ = render(scene, straight)
    found = consistency(looks(frames[::4]), reference=40, stretch=range(40, 120))
    assert found.color == 1 and found.background == 1
    assert found.identity is not None and found.identity > 0.98
    assert found.returns is not None and found.returns > 0.95
    assert found.tint < 0.05
