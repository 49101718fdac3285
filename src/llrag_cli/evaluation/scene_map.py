"""The memory map of a video of several shots, or with references: what its parts look like."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from string import ascii_uppercase
from typing import Any

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.evaluation.inspect import sources_of
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.runs.folder import BlockMemory
from llrag_cli.scenes.replay import Replay
from llrag_cli.scenes.timeline import ShotSpan, Timeline

SHOTS = ("#a9cbea", "#f9c795", "#b3dcae", "#d2c1ea", "#f4b3b3", "#a9dddb", "#e6d98c", "#e3bfa9")  # one after the other
REFERENCE = "#d8d2c4"
ATTENDED, FORGOTTEN, INK = "#e3e4e7", "#c9a3a0", "#3f4650"
SWITCH: dict[str, Any] = {"color": INK, "lw": 1.0, "ls": (0, (3, 2.5))}
CUT: dict[str, Any] = {"color": INK, "lw": 1.8, "ls": "-"}
PADDING: dict[str, Any] = {"w_pad": 0.015, "h_pad": 0.045, "wspace": 0.0, "hspace": 0.0}  # inches; between charts
CHARACTER = 0.6  # width of a letter, in parts of its size


@contextmanager
def savable() -> Iterator[None]:
    """Names may have letters that the font has not, which are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


class SceneMap:
    """The chart, whose axes are times of the video, with a band below 0 for each reference, and the rows of pictures.

    A block and a frame are as wide as they last: their dot is in the middle of that.
    """

    def __init__(self, config: RunConfig, timeline: Timeline, blocks: Sequence[BlockMemory]) -> None:
        self.config, self.timeline, self.blocks = config, timeline, blocks
        self.size = timeline.frames_per_block
        self.end = self.seconds((blocks[-1].frame if blocks else 0) + self.size)
        names = [shot.name for shot in timeline.shots]
        self.replay = Replay(config.memory, timeline) if isinstance(config.memory, RetrievalMemory) else None
        self.colors = {name: SHOTS[number % len(SHOTS)] for number, name in enumerate(names)}
        self.colors |= dict.fromkeys(timeline.reference_frames, REFERENCE)

    @property
    def inches(self) -> float:
        """Height of the chart."""
        return 6.2 + 0.3 * min(8, len(self.timeline.references))

    def seconds(self, frame: float) -> float:
        """Where a frame begins along an axis."""
        return self.config.latent_space.temporal_ratio * frame / self.config.backbone.fps

    @cached_property
    def bands(self) -> dict[str, tuple[float, float]]:
        """Bottom and top of the band of each reference, the first one below 0."""
        count = len(self.timeline.references)
        height = self.end * min(0.075, 0.5 / max(1, count))
        return {
            name: (-(number + 1) * height, -number * height)
            for number, name in enumerate(self.timeline.reference_frames)
        }

    @property
    def lowest(self) -> float:
        """Where the vertical axis begins: 0, or below the references."""
        return min((bottom for bottom, _ in self.bands.values()), default=0.0)

    def height(self, frame: int) -> float:
        """Where the middle of a frame is on the vertical axis."""
        if frame >= 0:
            return self.seconds(frame + 0.5)
        name = self.timeline.name_of(frame)
        span, (bottom, top) = self.timeline.reference_frames[name], self.bands[name]
        return bottom + (top - bottom) * (frame - span.start + 0.5) / len(span)

    def draw(self, chart: SubFigure, shown: Sequence[BlockMemory]) -> None:
        """The chart, on which the blocks that are ``shown`` below have letters."""
        grid = chart.subplots(
            2, 2, sharex="col", sharey="row", gridspec_kw={"width_ratios": [0.035, 1], "height_ratios": [0.05, 1]}
        )
        (corner, above), (beside, axes) = grid
        corner.set_axis_off()
        self._shade(axes)
        self._draw_changes(axes)
        self._draw_dots(chart, axes, [*grid.flat])
        self._draw_strips(above, beside)
        self._label(above, beside, axes)
        for letter, block in zip(ascii_uppercase, shown, strict=False):
            above.annotate(
                letter,
                (self.seconds(block.frame + self.size / 2), 1.08),
                xycoords=("data", "axes fraction"),
                ha="center",
                fontsize=9,
                fontweight="bold",
            )

    def _draw_dots(self, chart: SubFigure, axes: Axes, around: list[Axes]) -> None:
        points = [
            (self.seconds(block.frame + self.size / 2), self.height(frame), cosine)
            for block in self.blocks
            for frame, cosine in zip(block.retrieved, block.similarities, strict=False)
        ]
        if not points:
            return
        times, heights, cosines = zip(*points, strict=True)
        norm = Normalize(min(cosines), max(*cosines, min(cosines) + 1e-6))
        axes.scatter(times, heights, c=cosines, norm=norm, cmap="viridis", s=16, zorder=5, clip_on=False)
        chart.colorbar(ScalarMappable(norm, "viridis"), ax=around, label="cosine", pad=0.01, aspect=35)

    def _shade(self, axes: Axes) -> None:
        """What is no candidate: frames that a shot may not remember, and those that its blocks attend to anyway."""
        if self.replay is None:
            return
        for shot in self._shots:
            for name, span in self.replay.forgotten(shot).items():
                self._shade_forgotten(axes, shot, *self._extent(name, span))
            self._shade_attended(axes, self.replay, shot)

    @property
    def _shots(self) -> list[ShotSpan]:
        """Those of which there are blocks."""
        return [shot for shot in self.timeline.shots if shot.start < len(self.blocks)]

    def _sides(self, shot: ShotSpan) -> tuple[float, float]:
        """Where a shot begins and ends along an axis, as far as it is generated."""
        stop = min(shot.stop, len(self.blocks))
        return self.seconds(shot.start * self.size), self.seconds(stop * self.size)

    def _extent(self, name: str, span: range) -> tuple[float, float]:
        """Bottom and top of a shot or reference on the vertical axis."""
        return self.bands[name] if name in self.bands else (self.seconds(span.start), self.seconds(span.stop))

    def _shade_forgotten(self, axes: Axes, shot: ShotSpan, bottom: float, top: float) -> None:
        left, right = self._sides(shot)
        patch = Rectangle((left, bottom), right - left, top - bottom, **_forgotten(), zorder=1)
        axes.add_patch(patch)

    def _shade_attended(self, axes: Axes, replay: Replay, shot: ShotSpan) -> None:
        """Window, guard and the block itself as steps; sink and pinned references as bars."""
        left, right = self._sides(shot)
        numbers = range(shot.start, min(shot.stop, len(self.blocks)))
        sides = [*(self.seconds(number * self.size) for number in numbers), right]
        below = [self.seconds(replay.window(number).start) for number in numbers]
        if replay.places(shot) <= 0:
            below = [self.lowest] * len(numbers)
        above = [self.seconds((number + 1) * self.size) for number in numbers]
        style: dict[str, Any] = {"color": ATTENDED, "lw": 0, "zorder": 2}
        axes.fill_between(sides, [*below, below[-1]], [*above, above[-1]], step="post", **style)
        sink = replay.sink(numbers[-1])
        bars = [(self.seconds(sink.start), self.seconds(sink.stop))]
        pinned = {self.timeline.name_of(frame) for frame in self.timeline.pinned_for(shot)}
        bars += [self.bands[name] for name in pinned]
        for bottom, top in bars:
            axes.add_patch(Rectangle((left, bottom), right - left, top - bottom, **style))

    def _draw_changes(self, axes: Axes) -> None:
        """Lines where shots begin, up to the diagonal and from it to the right; lines between references."""
        axes.plot([0, self.end], [0, self.end], color="#8a9099", lw=0.8, zorder=3)
        for shot in self._shots[1:]:
            time, style = self._sides(shot)[0], CUT if shot.kind == "cut" else SWITCH
            axes.plot([time, time], [self.lowest, time], **style, zorder=3)
            axes.plot([time, self.end], [time, time], **style, zorder=3, alpha=0.45)
        for _, top in self.bands.values():
            axes.axhline(top, color=INK, lw=0.8 if top == 0 else 0.4, zorder=3)

    def _draw_strips(self, above: Axes, beside: Axes) -> None:
        """The shots as coloured bands along both axes, with their names where there is room."""
        width, height = 8.2, self.inches - 1.2  # inches, about
        total = self.end - self.lowest
        for number, shot in enumerate(self._shots, start=1):
            left, right = self._sides(shot)
            style: dict[str, Any] = {"facecolor": self.colors[shot.name], "edgecolor": "white", "lw": 0.8}
            above.add_patch(Rectangle((left, 0), right - left, 1, **style))
            beside.add_patch(Rectangle((0, left), 1, right - left, **style))
            middle = (left + right) / 2
            for axes, at, turn, inches in (
                (above, (middle, 0.46), 0, width * (right - left) / self.end),
                (beside, (0.5, middle), 90, height * (right - left) / total),
            ):
                text = _fitting(f"{number} {shot.name}", f"{number}", inches=inches)
                axes.text(
                    *at, text, rotation=turn, ha="center", va="center", fontsize=8, color="#1d2127", parse_math=False
                )
        for bottom, top in self.bands.values():
            beside.add_patch(Rectangle((0, bottom), 1, top - bottom, facecolor=REFERENCE, edgecolor="white", lw=0.8))

    def _label(self, above: Axes, beside: Axes, axes: Axes) -> None:
        """Axes, their ticks, and the legend."""
        axes.set(xlim=(0, self.end), ylim=(self.lowest, self.end))
        axes.set_xlabel("block, in seconds of the video; pictures of A, B, ... are below")
        for strip in (above, beside):
            strip.tick_params(length=0)
            strip.spines[:].set_visible(False)
        above.set_yticks([])
        beside.set_xticks([])
        axes.tick_params(left=False, labelleft=False)
        above.tick_params(labelbottom=False)
        ticks = [tick for tick in MaxNLocator(8).tick_values(0, self.end) if 0 <= tick <= self.end]
        middles = [(bottom + top) / 2 for bottom, top in self.bands.values()]
        beside.set_yticks(
            [*ticks, *middles], [*(f"{tick:g}" for tick in ticks), *map(_short, self.bands)], parse_math=False
        )
        beside.set_ylabel("retrieved frames, in seconds of the video" + ("; references" if self.bands else ""))
        axes.legend(handles=self._legend(), frameon=False, loc="upper left", fontsize=8.5)

    def _legend(self) -> list[Patch | Line2D]:
        kinds = {shot.kind for shot in self._shots}
        handles: list[Patch | Line2D] = [
            Line2D([], [], marker="o", ls="", ms=4, color="#35608d", label="a frame that a block retrieved")
        ]
        if self.replay is not None:
            handles += [
                Patch(facecolor="white", edgecolor="#8a9099", lw=0.8, label="could be retrieved"),
                Patch(facecolor=ATTENDED, label="could not: " + self._attended(self.replay)),
            ]
            if any(map(self.replay.forgotten, self._shots)):
                handles.append(Patch(**_forgotten(), label="could not: the shot may not remember it"))
        if "switch" in kinds:
            handles.append(Line2D([], [], **SWITCH, label="switch: another prompt, the picture continues"))
        if "cut" in kinds:
            handles.append(Line2D([], [], **CUT, label="cut: a new picture, the window starts empty"))
        return handles

    def _attended(self, replay: Replay) -> str:
        pinned = ", pinned reference" if self.timeline.pinned_frames else ""
        full = ", or no place is left" if any(replay.places(shot) <= 0 for shot in self._shots) else ""
        return f"attended anyway (window, sink{pinned}), or guarded{full}"

    def draw_row(self, panels: Sequence[Axes], number: int, block: BlockMemory, pictures: Mapping[int, Tensor]) -> None:
        """The pictures of a block and of what it retrieved, each framed in the colour of its shot."""
        own = self.timeline.shot_of_frame(block.frame).name
        entries = [(block.frame, own, f"block at {self.seconds(block.frame):.1f} s")]
        for frame, source, cosine in zip(
            block.retrieved, sources_of(block, self.timeline), block.similarities, strict=False
        ):
            entries.append((frame, source, f"{self._place(frame)} · {cosine:.2f}"))
        for column, panel in enumerate(panels):
            if column >= len(entries):
                panel.set_axis_off()
                continue
            frame, source, text = entries[column]
            self._draw_picture(panel, pictures.get(frame), color=self.colors[source])
            name = f"{ascii_uppercase[number - 1]}: {_short(source)}" if column == 0 else _short(source)
            panel.set_title(f"{name}\n{text}", fontsize=7.5, pad=3, parse_math=False, linespacing=1.15)

    def _place(self, frame: int) -> str:
        """The time of a frame, or its number in a reference of several."""
        if frame >= 0:
            return f"{self.seconds(frame):.1f} s"
        span = self.timeline.reference_frames[self.timeline.name_of(frame)]
        return f"frame {frame - span.start}" if len(span) > 1 else "reference"

    def _draw_picture(self, panel: Axes, picture: Tensor | None, *, color: str) -> None:
        if picture is None:
            panel.set_facecolor("#f0f0f1")
            panel.set_box_aspect(self.config.height / self.config.width)
            panel.text(
                0.5, 0.5, "no picture", transform=panel.transAxes, ha="center", va="center", fontsize=7, color=INK
            )
        else:
            panel.imshow(picture.numpy(), interpolation="nearest")
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set(color=color, linewidth=3)


def _forgotten() -> dict[str, Any]:
    return {"facecolor": "#fbf3f2", "edgecolor": FORGOTTEN, "hatch": "////", "lw": 0}


def _short(name: str, length: int = 16) -> str:
    """A name of at most so many letters, in one line."""
    name = " ".join(name.split())
    return name if len(name) <= length else name[: length - 1] + "…"


def _fitting(long: str, short: str, *, inches: float, points: float = 8) -> str:
    """The longer text, cut if that leaves some of it, or the shorter one, or nothing, as there is room."""
    letters = int(72 * inches / (CHARACTER * points))
    if letters >= min(len(long), 7):
        return _short(long, letters)
    return short if letters >= len(short) else ""
