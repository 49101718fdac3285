"""Reads a sprite-world video back: the wall's colour, and the objects in view with colour and shape.

It judges decoded videos of the embedded model; the tests compare it with ground truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from llrag_cli.world.sprites import OBJECT_COLORS, SHAPES, SIZE, WALL_COLORS, Scene, distance

NEAR = 0.20  # largest RGB distance (channels in [0, 1]) at which a pixel belongs to an object
VISIBLE = 60  # pixels from which on an object counts as visible
WALL_LIGHTS = (0.75, 0.85, 0.95, 1.05, 1.15, 1.25)  # shades of a wall, by pattern and position
_TEMPLATE = 48  # side of the shape templates in pixels


@dataclass(frozen=True)
class Seen:
    """One object in one frame: its colour, its shape (None if cut off by the frame's edge), its area in pixels."""

    color: str
    shape: str | None
    area: int


def wall_color(frame: Tensor) -> str:
    """The wall's colour in a frame [3, H, W] in [0, 1]: nearest hue and lightness to the median pixel."""
    median = frame.flatten(1).median(dim=1).values  # objects cover less than half of the frame
    names = list(WALL_COLORS)
    palette = torch.tensor([WALL_COLORS[name] for name in names]) / 255
    distances = (_hue(palette) - _hue(median)).norm(dim=1) + 0.15 * (palette.mean(1) - median.mean()).abs()
    return names[int(distances.argmin())]


def _hue(color: Tensor) -> Tensor:
    return color / color.sum(dim=-1, keepdim=True).clamp_min(1e-3)


def objects(frame: Tensor, *, wall: str) -> list[Seen]:
    """The objects visible in a frame [3, H, W] in [0, 1], at most one per colour."""
    found = []
    for name, mask in _masks(frame, wall).items():
        area = int(mask.sum())
        if area >= VISIBLE:
            found.append(Seen(name, shape_of(mask), area))
    return found


def wall_tint(frame: Tensor, *, wall: str) -> Tensor:
    """The mean colour [3] of the pixels without an object in a frame [3, H, W] in [0, 1]."""
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


def judge(frames: Tensor, scene: Scene, *, stride: int = 4) -> Verdict:
    """Check every ``stride``-th frame of a video [T, 3, H, W] in [0, 1]; other sizes are averaged down to 64x64."""
    if frames.shape[-1] != SIZE:
        frames = torch.nn.functional.interpolate(frames, size=(SIZE, SIZE), mode="area")
    sampled = frames[::stride]
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
    )


def share(verdicts: Sequence[Verdict], name: str) -> float:
    """The mean of one field over verdicts."""
    return sum(float(getattr(verdict, name)) for verdict in verdicts) / len(verdicts)
