"""Geometry of the report's line charts, drawn by the template as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

COLORS = ("#3b6fd4", "#d4583b", "#3ba272", "#9c5bc2", "#c79a1e", "#3aa6b5", "#8a8f98", "#c2577f", "#6b8e23")


@dataclass(frozen=True)
class Curve:
    """One line over time: mean and the band about it; all of one length, x in seconds."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Tick:
    """A label on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """One point of a line, and its text for the pointer."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve in the coordinates of the picture."""

    name: str
    color: str
    path: str
    band: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True)
class Chart:
    """A chart in units of its picture."""

    title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    opacity: float = 0.14  # of the bands
    width: int = 400
    height: int = 230
    left: int = 48
    right: int = 392
    top: int = 8
    bottom: int = 192


def ticks(low: float, high: float, *, count: int = 5) -> list[float]:
    """About ``count`` round numbers in low..high, evenly spaced."""
    span = high - low
    if span <= 0:
        return [low]
    magnitude = 10 ** math.floor(math.log10(span / count))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if span / (magnitude * factor) <= count)
    return [step * number for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def line_chart(title: str, curves: Sequence[Curve]) -> Chart:
    """A chart of curves with their bands; every curve has at least one point."""
    frame = Chart(title, (), (), ())
    end = max(curve.x[-1] for curve in curves)
    low = min(min(*curve.low, *curve.y) for curve in curves)  # a mean may be outside the middle half
    high = max(max(*curve.high, *curve.y) for curve in curves)
    margin = 0.05 * (high - low) or 0.01 * max(1.0, abs(high))
    low, high = low - margin, high + margin

    def column(x: float) -> float:
        return round(frame.left + x / end * (frame.right - frame.left), 1)

    def row(y: float) -> float:
        return round(frame.bottom - (y - low) / (high - low) * (frame.bottom - frame.top), 1)

    def points(xs: Sequence[float], ys: Sequence[float]) -> list[str]:
        return [f"{column(x)},{row(y)}" for x, y in zip(xs, ys, strict=True)]

    lines = [
        Line(
            name=curve.name,
            color=COLORS[number % len(COLORS)],
            path=" ".join(points(curve.x, curve.y)),
            band=" ".join([*points(curve.x, curve.high), *reversed(points(curve.x, curve.low))]),
            dots=tuple(
                Dot(column(x), row(y), f"{curve.name}, {x:g} s: {y:.4g}") for x, y in zip(curve.x, curve.y, strict=True)
            ),
        )
        for number, curve in enumerate(curves)
    ]
    x_ticks = tuple(Tick(column(x), f"{x:g}") for x in ticks(0, end, count=6))
    y_ticks = tuple(Tick(row(y), f"{round(y, 10):g}") for y in ticks(low, high))
    return Chart(title, x_ticks, y_ticks, tuple(lines), opacity=round(min(0.14, 0.35 / len(lines)), 3))
