"""The memory map, a PNG: times of blocks against the times of the frames that they retrieved, and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.evaluation.inspect import example_blocks
from llrag_cli.evaluation.scene_map import PADDING, SceneMap, savable
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.runs.folder import BlockMemory
from llrag_cli.scenes.timeline import Timeline

MOST_PICTURES = 24  # of the frames that a block retrieved, the most similar ones


def draw_memory_map(
    config: RunConfig,
    blocks: Sequence[BlockMemory],
    pictures: Mapping[int, Tensor],
    timeline: Timeline | None = None,
) -> bytes:
    """A PNG: time of each block against the times of the frames it retrieved, coloured by cosine; below, pictures.

    With a timeline of several shots, or of references, those are shown too.
    """
    shown = example_blocks(blocks)
    scene = None if timeline is None or timeline.is_plain else SceneMap(config, timeline, blocks)
    row = 1.35 if scene is None else 1.6
    top = 5.0 if scene is None else scene.inches
    heights = [top, row * len(shown)] if shown else [top]
    layout = ConstrainedLayoutEngine(**(PADDING if scene else {}))
    figure = Figure(figsize=(10, sum(heights)), layout=layout)
    chart, *strip = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if scene is None:
        _draw_plain(chart, config, blocks, shown)
    else:
        scene.draw(chart, shown)
    for part in strip:
        columns = 1 + min(MOST_PICTURES, max(len(block.retrieved) for block in shown))
        grid = part.subplots(len(shown), columns, squeeze=False, gridspec_kw={} if scene is None else {"wspace": 0.05})
        for number, (panels, block) in enumerate(zip(grid, shown, strict=True), start=1):
            if scene is None:
                _draw_row(panels, number, block, pictures, config)
            else:
                scene.draw_row(panels, number, block, pictures)
    file = BytesIO()
    with savable():
        figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _draw_plain(
    chart: SubFigure, config: RunConfig, blocks: Sequence[BlockMemory], shown: Sequence[BlockMemory]
) -> None:
    """The map of a video of one shot."""
    memory, second_of = config.memory, config.second_of
    axes = chart.subplots()
    points = [
        (second_of(block.frame), second_of(frame), cosine)
        for block in blocks
        for frame, cosine in zip(block.retrieved, block.similarities, strict=False)
    ]
    end = second_of(blocks[-1].frame if blocks else 1)
    if isinstance(memory, RetrievalMemory):
        starts = [block.frame for block in blocks]
        newest = [second_of(max(memory.sink, start - memory.window + memory.sink - memory.guard)) for start in starts]
        times = [second_of(start) for start in starts]
        axes.fill_between(times, newest, times, color="#999999", alpha=0.18, lw=0, label="window and guarded frames")
        axes.legend(frameon=False, loc="upper left")
    axes.plot([0, end], [0, end], color="#999999", lw=0.8)
    if points:
        cosines = [cosine for *_, cosine in points]
        norm = Normalize(min(cosines), max(cosines) if max(cosines) > min(cosines) else min(cosines) + 1e-6)
        made, retrieved, _ = zip(*points, strict=True)
        axes.scatter(made, retrieved, c=cosines, norm=norm, cmap="viridis", s=14)
        chart.colorbar(ScalarMappable(norm, "viridis"), ax=axes, label="cosine")
    for number, block in enumerate(shown, start=1):
        axes.annotate(str(number), (second_of(block.frame), 1.01), xycoords=("data", "axes fraction"), ha="center")
    axes.set(xlabel="seconds: block", ylabel="seconds: retrieved frames", xlim=(0, end), ylim=(0, end))


def _draw_row(
    panels: Sequence[Axes], number: int, block: BlockMemory, pictures: Mapping[int, Tensor], config: RunConfig
) -> None:
    """The pictures of a block and of what it retrieved."""
    for column, panel in enumerate(panels):
        panel.set_axis_off()
        frame = block.frame if column == 0 else next(iter(block.retrieved[column - 1 : column]), None)
        if frame is None or frame not in pictures:
            continue
        panel.imshow(pictures[frame].numpy(), interpolation="nearest")
        title = f"{config.second_of(frame):.1f} s"
        if column:
            title += f" · {block.similarities[column - 1]:.2f}"
        panel.set_title(f"{number}: {title}" if column == 0 else title, fontsize=8, pad=2)
