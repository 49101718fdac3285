"""Whether a sprite-world video stays consistent with its own beginning, from pixels alone, without the prompt.

The first part of a video is the reference. Later objects are compared with its colours and shapes; a return is
correct if the object comes into view next to the same neighbour as in the reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import torch
from torch import Tensor

from llrag_cli.world.checker import Seen, in_units, objects, wall_color, wall_tint


@dataclass(frozen=True)
class Look:
    """Content of one frame: the wall's name and mean colour [3], and the objects."""

    wall: str
    tint: tuple[float, float, float]
    objects: tuple[Seen, ...]


@dataclass(frozen=True)
class Consistency:
    """Shares in 0..1 over a range of frames; None if there was nothing to judge."""

    color: float | None  # of objects in view, those of a colour in the reference
    identity: float | None  # of objects completely in view, those of a colour and shape in the reference
    background: float  # of frames, those with the reference's wall colour
    tint: float  # mean distance of the wall's colour from the reference's, in RGB 0..1
    returns: float | None  # of objects that come into view, those next to the same neighbour as in the reference
    visible: float  # of frames, those that show any object


def look(frame: Tensor) -> Look:
    """Read a frame [3, H, W] in [0, 1]."""
    frame = in_units(frame)
    wall = wall_color(frame)
    red, green, blue = wall_tint(frame, wall=wall).tolist()
    return Look(wall, (red, green, blue), tuple(objects(frame, wall=wall)))


def looks(frames: Tensor) -> list[Look]:
    """Read frames [F, 3, H, W] in [0, 1]."""
    return [look(frame) for frame in frames]


def consistency(seen: Sequence[Look], *, reference: int, stretch: range) -> Consistency:
    """Compare the frames of ``stretch`` with the first ``reference`` ones."""
    first = seen[:reference]
    wall = Counter(each.wall for each in first).most_common(1)[0][0]
    tint = torch.tensor([each.tint for each in first]).mean(0)
    known = known_objects(first)
    pairs = {frozenset(pair) for pair in neighbours(appearances(first))}
    judged = [seen[number] for number in stretch]
    visible = [each for frame in judged for each in frame.objects]
    whole = [each for each in visible if each.shape is not None]
    coming = neighbours(appearances(seen[: stretch.stop]), since=stretch.start)
    right = [now in known and (now == before or frozenset((before, now)) in pairs) for before, now in coming]
    return Consistency(
        color=_share([each.color in known for each in visible]),
        identity=_share([known.get(each.color) == each.shape for each in whole]),
        background=sum(each.wall == wall for each in judged) / len(judged),
        tint=float((torch.tensor([each.tint for each in judged]) - tint).norm(dim=1).mean()),
        returns=_share(right),
        visible=sum(bool(each.objects) for each in judged) / len(judged),
    )


def sprite_metrics(frames: Iterable[Tensor]) -> dict[str, float | None]:
    """``Consistency`` of a video's frames [3, H, W] in [0, 1] after their first third; names start with ``sprite_``."""
    seen = [look(frame) for frame in frames]
    third = max(1, len(seen) // 3)
    judged = consistency(seen, reference=third, stretch=range(third, len(seen)))
    return {f"sprite_{name}": value for name, value in asdict(judged).items()}


def known_objects(first: Sequence[Look]) -> dict[str, str | None]:
    """Colours visible in at least two frames, with the most frequent shape of each."""
    counts = Counter(each.color for frame in first for each in frame.objects)
    shapes: dict[str, Counter[str]] = {}
    for frame in first:
        for each in frame.objects:
            if each.shape is not None:
                shapes.setdefault(each.color, Counter())[each.shape] += 1
    return {
        color: shapes[color].most_common(1)[0][0] if color in shapes else None
        for color, count in counts.items()
        if count >= 2
    }


def appearances(seen: Sequence[Look]) -> list[tuple[int, str]]:
    """Frame and colour of each object that comes into view, in order; gaps of one frame are ignored."""
    found = []
    for number, frame in enumerate(seen):
        before = {each.color for past in seen[max(0, number - 2) : number] for each in past.objects}
        found += [(number, each.color) for each in frame.objects if each.color not in before]
    return found


def neighbours(order: Sequence[tuple[int, str]], *, since: int = 0) -> list[tuple[str, str]]:
    """Colours that came into view one after the other, as (before, now), from frame ``since`` on."""
    return [(before[1], now[1]) for before, now in pairwise(order) if now[0] >= since]


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None
