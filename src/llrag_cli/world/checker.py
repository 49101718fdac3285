"""Reads a sprite-world video back: the wall's colour, and the objects in view with colour and shape.

It judges decoded videos of the embedded model; the tests compare it with ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from llrag_cli.world.sprites import OBJECT_COLORS, SHAPES, SIZE, WALL_COLORS, Scene, Sprite, distance

NEAR = 0.20  # largest RGB distance (channels in [0, 1]) at which a pixel belongs to an object
VISIBLE = 60  # square units from which on an object counts as visible
WALL_LIGHTS = (0.75, 0.85, 0.95, 1.05, 1.15, 1.25)  # shades of a wall, by pattern and position
_TEMPLATE = 48  # side of the shape templates in units


@dataclass(frozen=True)
class Seen:
    """One object in one frame: its colour, shape (None if cut off by the frame's edge) and area in square units."""

    color: str
    shape: str | None
    area: int


def in_units(frame: Tensor) -> Tensor:
    """A frame [3, H, W] averaged to [3, 64, 64], a pixel for each unit of the world."""
    if frame.shape[-2:] == (SIZE, SIZE):
        return frame
    return torch.nn.functional.interpolate(frame[None], size=(SIZE, SIZE), mode="area")[0]


def wall_color(frame: Tensor) -> str:
    """The wall that most pixels of a frame [3, H, W] in [0, 1] are a shade of; objects' pixels have no vote."""
    names, lights = list(WALL_COLORS), len(WALL_LIGHTS)
    shades = torch.tensor([WALL_COLORS[name] for name in names])[:, None] * torch.tensor(WALL_LIGHTS)[None, :, None]
    palette = torch.cat([torch.tensor([*OBJECT_COLORS.values()]).float(), shades.flatten(0, 1)]) / 255  # [n, 3]
    nearest = torch.cdist(in_units(frame).flatten(1).T, palette).argmin(dim=1)
    votes = (nearest - len(OBJECT_COLORS)).div(lights, rounding_mode="floor")  # negative: an object
    return names[int(torch.bincount(votes[votes >= 0], minlength=len(names)).argmax())]


def objects(frame: Tensor, *, wall: str) -> list[Seen]:
    """The objects visible in a frame [3, H, W] in [0, 1], at most one per colour."""
    found = []
    for name, mask in _masks(in_units(frame), wall).items():
        area = int(mask.sum())
        if area >= VISIBLE:
            found.append(Seen(name, shape_of(mask), area))
    return found


def wall_tint(frame: Tensor, *, wall: str) -> Tensor:
    """The mean colour [3] of the pixels without an object in a frame [3, H, W] in [0, 1]."""
    frame = in_units(frame)
    covered = torch.stack(list(_masks(frame, wall).values())).any(dim=0)
    return frame[:, ~covered].mean(dim=1) if not covered.all() else frame.flatten(1).mean(dim=1)


def _masks(frame: Tensor, wall: str) -> dict[str, Tensor]:
    """The pixels [H, W] of each object colour."""
    names = list(OBJECT_COLORS)
    colors = [OBJECT_COLORS[name] for name in names]
    shades = [tuple(light * channel for channel in WALL_COLORS[wall]) for light in WALL_LIGHTS]
    palette = torch.tensor([*colors, *shades]) / 255
    gaps = (frame[None] - palette[:, :, None, None]).square().sum(dim=1)  # [colours and wall shades, H, W]
    distances, nearest = gaps.min(dim=0)
    return {name: (nearest == index) & (distances < NEAR**2) for index, name in enumerate(names)}


def shape_of(mask: Tensor) -> str | None:
    """The shape whose template overlaps a mask [H, W] best; None if it touches the frame's edge."""
    if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
        return None
    rows, columns = mask.nonzero().float().unbind(1)
    top, left = round(float(rows.mean())), round(float(columns.mean()))
    padded = torch.nn.functional.pad(mask.float(), (_TEMPLATE,) * 4)
    half = _TEMPLATE // 2
    window = padded[
        top + _TEMPLATE - half : top + _TEMPLATE + half + 1, left + _TEMPLATE - half : left + _TEMPLATE + half + 1
    ]
    templates, names = _templates(min(max(int(mask.sum()), VISIBLE), 900) // 20)
    overlap = (window * templates).sum(dim=(1, 2)) / torch.maximum(window, templates).sum(dim=(1, 2))
    return names[int(overlap.argmax())]


@cache
def _templates(area_step: int) -> tuple[Tensor, list[str]]:
    """Every shape at about ``20 * area_step`` pixels, centroid in the middle: masks [n, 49, 49] and their names."""
    axis = torch.arange(_TEMPLATE + 1) - _TEMPLATE / 2
    y, x = axis[:, None], axis[None, :]
    masks, names = [], []
    for shape in SHAPES:
        sizes = [radius / 4 for radius in range(12, 100)]
        areas = [(distance(shape, x, y, size) <= 0).sum() for size in sizes]
        near = min(range(len(sizes)), key=lambda i: abs(int(areas[i]) - 20 * area_step))
        for size in sizes[max(0, near - 2) : near + 3 : 2]:
            inside = distance(shape, x, y, size) <= 0
            shift = inside.nonzero().float().mean(0) - _TEMPLATE / 2
            centred = distance(shape, x + shift[1], y + shift[0], size)
            masks.append((0.5 - centred).clamp(0, 1))
            names.append(shape)
    return torch.stack(masks), names


@dataclass(frozen=True)
class Verdict:
    """Whether a video shows what its scene describes."""

    wall: bool  # the right colour in most of the checked frames
    color: bool  # an object of a described colour is visible in some frame
    all_colors: bool  # every described colour is visible in some frame
    shape: bool  # most sightings of described colours, over all objects, have the right shape
    share_visible: float  # share of frames that show an object of a described colour
    kept: tuple[bool, ...]  # of each described object: it is there, with its shape, over the whole video (``is_kept``)


KEPT = 0.8  # share of the frames from which on an object counts as kept


def is_kept(sprite: Sprite, seen: Sequence[Sequence[Seen]], *, always: bool) -> bool:
    """Whether an object is seen in its colour and shape in ``KEPT`` of the frames that it has to be in.

    These are all frames if it is ``always`` in view, and otherwise those that show its colour, of which there must be
    one. Where an object is cut off by the frame's edge, its colour is enough.
    """
    sightings = [next((each for each in found if each.color == sprite.color), None) for found in seen]
    if not always:
        sightings = [each for each in sightings if each is not None]
    right = [each is not None and each.shape in (sprite.shape, None) for each in sightings]
    told = any(each is not None and each.shape == sprite.shape for each in sightings)
    return told and sum(right) >= KEPT * len(right)


def judge(frames: Tensor, scene: Scene, *, stride: int = 4) -> Verdict:
    """Check every ``stride``-th frame of a video [T, 3, H, W] in [0, 1]."""
    sampled = [in_units(frame) for frame in frames[::stride]]
    walls = sum(wall_color(frame) == scene.wall for frame in sampled)
    seen = [objects(frame, wall=scene.wall) for frame in sampled]
    described = {sprite.color: sprite.shape for sprite in scene.sprites}
    visible = {color for found in seen for color in (each.color for each in found) if color in described}
    right = [
        each.shape == described[each.color]
        for found in seen
        for each in found
        if each.color in described and each.shape
    ]
    return Verdict(
        wall=2 * walls > len(sampled),
        color=bool(visible),
        all_colors=visible == set(described),
        shape=2 * sum(right) > len(right) > 0,
        share_visible=sum(any(each.color in described for each in found) for found in seen) / len(sampled),
        kept=tuple(is_kept(sprite, seen, always=scene.motion != "pan") for sprite in scene.sprites),
    )


def share(verdicts: Sequence[Verdict], name: str) -> float:
    """The mean of one field over verdicts, of ``kept`` over their objects."""
    values = [getattr(verdict, name) for verdict in verdicts]
    flat = [each for value in values for each in (value if isinstance(value, tuple) else (value,))]
    return sum(map(float, flat)) / len(flat)
