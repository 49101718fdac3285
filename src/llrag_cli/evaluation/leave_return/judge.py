"""How much of a place is seen in the frames of a shot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llrag_cli.world.checker import WALL_LIGHTS, Seen, objects
from llrag_cli.world.sprites import OBJECT_COLORS, WALL_COLORS, Scene

STRIDE = 4  # every fourth frame is judged


@dataclass(frozen=True)
class Look:
    """Content of one frame: the wall's colour, and the objects."""

    wall: str
    objects: tuple[Seen, ...]


@dataclass(frozen=True)
class Shares:
    """Shares of the judged frames in 0..1 that show a place, as its prompt describes it."""

    wall: float  # the wall has its colour
    color: float  # an object has its colour, mean over objects; a missing object is wrong
    shape: float  # the object of that colour has its shape; cut off by the frame's edge it is not judged


def shares_of(scene: Scene, seen: Sequence[Look]) -> Shares:
    """What frames show of a scene."""
    colors, shapes = [], []
    for sprite in scene.sprites:
        found = [next((each for each in frame.objects if each.color == sprite.color), None) for frame in seen]
        judged = [each for each in found if each is None or each.shape is not None]
        colors.append(sum(each is not None for each in found) / len(found))
        right = sum(each is not None and each.shape == sprite.shape for each in judged)
        shapes.append(right / len(judged) if judged else 0.0)
    return Shares(
        wall=sum(frame.wall == scene.wall for frame in seen) / len(seen),
        color=sum(colors) / len(colors),
        shape=sum(shapes) / len(shapes),
    )


def looked_at(frames: Tensor) -> list[Look]:
    """The content of the judged frames of a shot [T, 3, 64, 64] in [0, 1]."""
    return [_look(frame) for frame in frames[::STRIDE]]


def _look(frame: Tensor) -> Look:
    wall = wall_by_vote(frame)
    return Look(wall, tuple(objects(frame, wall=wall)))


def wall_by_vote(frame: Tensor) -> str:
    """The wall that most pixels of a frame [3, H, W] in [0, 1] are a shade of.

    Pixels that are nearer to an object's colour have no vote. The median pixel, which ``checker.wall_color`` goes by,
    is of another hue where a large object hides much of a striped wall.
    """
    walls = list(WALL_COLORS)
    shades = torch.tensor([WALL_COLORS[name] for name in walls])[:, None] * torch.tensor(WALL_LIGHTS)[None, :, None]
    palette = torch.cat([torch.tensor([*OBJECT_COLORS.values()]).float(), shades.flatten(0, 1)]) / 255  # [n, 3]
    nearest = torch.cdist(frame.flatten(1).T, palette).argmin(dim=1)
    votes = (nearest - len(OBJECT_COLORS)).div(len(WALL_LIGHTS), rounding_mode="floor")  # negative: of an object
    counts = torch.bincount(votes[votes >= 0], minlength=len(walls))
    return walls[int(counts.argmax())]
