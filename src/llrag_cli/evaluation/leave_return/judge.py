"""How much of a place is seen in the frames of a shot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from llrag_cli.world.checker import Seen, in_units, objects, wall_color
from llrag_cli.world.sprites import Scene

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
    """The content of the judged frames of a shot [T, 3, H, W] in [0, 1]."""
    return [_look(frame) for frame in frames[::STRIDE]]


def _look(frame: Tensor) -> Look:
    frame = in_units(frame)
    wall = wall_color(frame)
    return Look(wall, tuple(objects(frame, wall=wall)))
