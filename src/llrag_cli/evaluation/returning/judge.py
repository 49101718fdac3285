"""How much of a scene is left in later frames: read back from pixels, and compared with the scene's own frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from llrag_cli.world.consistency import Look, looks

OFTEN = 0.25  # share of a scene's own frames that show an object, from which on it belongs to the scene


@dataclass(frozen=True)
class Reference:
    """A scene as its own frames show it."""

    shapes: Mapping[str, str | None]  # of its objects, by colour; None: never completely in view
    areas: Mapping[str, float]  # median over the frames that show the object completely, by colour
    tint: tuple[float, float, float]  # mean colour of the wall, RGB in 0..1


@dataclass(frozen=True)
class Measures:
    """Frames compared with a scene; None if there is nothing to judge."""

    color: float | None  # share of the visible objects that have a colour of the scene
    identity: float | None  # share of the objects completely in view that have colour and shape of one of the scene
    size: float | None  # mean relative error of the area of objects completely in view, by colour
    tint: float  # mean distance of the wall's colour from the scene's, RGB in 0..1
    presence: float | None  # share of the scene's objects that are seen, mean over frames


def looked_at(frames: Tensor) -> list[Look]:
    """The content of frames [T, 3, H, W] in [0, 1]."""
    return looks(frames.float().cpu())


def reference_of(seen: Sequence[Look]) -> Reference:
    """What a scene looks like, from its own frames."""
    counts = Counter(each.color for frame in seen for each in frame.objects)
    colors = [color for color, count in counts.items() if count >= OFTEN * len(seen)]
    whole = {color: [each for frame in seen for each in frame.objects if each.color == color] for color in colors}
    whole = {color: [each for each in found if each.shape is not None] for color, found in whole.items()}
    red, green, blue = torch.tensor([frame.tint for frame in seen]).mean(0).tolist()
    return Reference(
        shapes={
            color: Counter(each.shape for each in found).most_common(1)[0][0] if found else None
            for color, found in whole.items()
        },
        areas={color: float(median(each.area for each in found)) for color, found in whole.items() if found},
        tint=(red, green, blue),
    )


def measured(seen: Sequence[Look], reference: Reference) -> Measures:
    """Compare frames with a scene. In a scene without objects only the wall can be judged."""
    tints = torch.tensor([frame.tint for frame in seen])
    tint = float((tints - torch.tensor(reference.tint)).norm(dim=1).mean())
    known = reference.shapes
    if not known:
        return Measures(None, None, None, tint, None)
    visible = [each for frame in seen for each in frame.objects]
    whole = [each for each in visible if each.shape is not None]
    return Measures(
        color=_mean([each.color in known for each in visible]),
        identity=_mean([known.get(each.color) == each.shape for each in whole]),
        size=_mean([abs(each.area / area - 1) for each in whole if (area := reference.areas.get(each.color))]),
        tint=tint,
        presence=_mean([len(known.keys() & {each.color for each in frame.objects}) / len(known) for frame in seen]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
