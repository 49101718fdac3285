"""The memory map of one run: what each block retrieved, as numbers, a picture and a page."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.evaluation.encoder.ranking import share_near
from llrag_cli.files.html import data_url, render
from llrag_cli.memory.context import retrievable
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.runs.folder import BlockMemory, RunFolder
from llrag_cli.runs.record import RunRecord
from llrag_cli.runs.video import read_frames

THUMBNAIL = 120  # pixels, the longer side


@dataclass(frozen=True)
class MemoryStats:
    """How a run used its memory; times in seconds."""

    blocks: int
    retrieving: int  # blocks that retrieved anything
    coverage: float  # share of the frames that could be retrieved, that were
    repeated: float  # share of retrieved frames that the block before retrieved too
    most_retrieved: tuple[tuple[float, int], ...]  # times of the frames retrieved most often, and how often
    lookback: float  # median time between a block and the frames it retrieved
    near_guard: float  # share of retrieved frames within 8 frames of the newest candidate
    similarity: float  # median cosine


def memory_stats(blocks: Sequence[BlockMemory], config: RunConfig) -> MemoryStats | None:
    """Statistics of a memory log; None if nothing was retrieved."""
    memory, second_of = config.memory, config.second_of
    retrieving = [block for block in blocks if block.retrieved]
    if not retrieving or not isinstance(memory, RetrievalMemory):
        return None
    counts = Counter(frame for block in retrieving for frame in block.retrieved)
    candidates = [
        retrievable(start=block.frame, window=memory.window, sink=memory.sink, guard=memory.guard)
        for block in retrieving
    ]
    repeated = [
        frame in before.retrieved for before, block in itertools.pairwise(retrieving) for frame in block.retrieved
    ]
    lookback = [second_of(block.frame - frame) for block in retrieving for frame in block.retrieved]
    near = [
        share_near(block.retrieved, frames[-1])
        for block, frames in zip(retrieving, candidates, strict=True)
        if len(frames) > 0
    ]
    similarities = [value for block in retrieving for value in block.similarities]
    return MemoryStats(
        blocks=len(blocks),
        retrieving=len(retrieving),
        coverage=len(counts) / max(1, len(candidates[-1])),
        repeated=sum(repeated) / len(repeated) if repeated else 0.0,
        most_retrieved=tuple((second_of(frame), count) for frame, count in counts.most_common(5)),
        lookback=float(torch.tensor(lookback).median()),
        near_guard=sum(near) / len(near) if near else 0.0,
        similarity=float(torch.tensor(similarities).median()),
    )


def example_blocks(blocks: Sequence[BlockMemory], count: int = 6) -> list[BlockMemory]:
    """Blocks to show: spread evenly over those that retrieved something, the last one among them."""
    retrieving = [block for block in blocks if block.retrieved]
    count = min(count, len(retrieving))
    return [retrieving[(index + 1) * len(retrieving) // count - 1] for index in range(count)]


def thumbnails(video: Path, frames: set[int], config: RunConfig, *, side: int = THUMBNAIL) -> dict[int, Tensor]:
    """Small pictures [h, w, 3] in [0, 1] of the latent frames that the file has, each of its last video frame."""
    wanted = {config.video_frames(frame + 1) - 1: frame for frame in frames}
    pictures: dict[int, Tensor] = {}
    for number, image in enumerate(read_frames(video)):
        if number in wanted:
            scale = max(1, max(image.shape[1:]) // side)
            pictures[wanted[number]] = torch.nn.functional.avg_pool2d(image[None], scale)[0].permute(1, 2, 0)
        if len(pictures) == len(wanted):
            break
    return pictures


def draw_memory_map(config: RunConfig, blocks: Sequence[BlockMemory], pictures: dict[int, Tensor]) -> bytes:
    """A PNG: time of each block against the times of the frames it retrieved, coloured by cosine; below, pictures."""
    memory, second_of, shown = config.memory, config.second_of, example_blocks(blocks)
    columns = 1 + max((len(block.retrieved) for block in shown), default=0)
    figure = Figure(figsize=(10, 5 + 1.35 * len(shown)), layout="constrained")
    heights = [5.0, 1.35 * len(shown)] if shown else [5.0]
    chart, *strip = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
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
    for part in strip:
        grid = part.subplots(len(shown), columns, squeeze=False)
        for number, (row, block) in enumerate(zip(grid, shown, strict=True), start=1):
            for column, panel in enumerate(row):
                panel.set_axis_off()
                frame = block.frame if column == 0 else next(iter(block.retrieved[column - 1 : column]), None)
                if frame is None or frame not in pictures:
                    continue
                panel.imshow(pictures[frame].numpy(), interpolation="nearest")
                title = f"{second_of(frame):.1f} s"
                if column:
                    title += f" · {block.similarities[column - 1]:.2f}"
                panel.set_title(f"{number}: {title}" if column == 0 else title, fontsize=8, pad=2)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def memory_page(
    folder: RunFolder,
    record: RunRecord,
    blocks: Sequence[BlockMemory],
    stats: MemoryStats | None,
    picture: bytes,
) -> str:
    """One HTML page, complete in itself: the statistics, the map, and what every block retrieved."""
    second_of = record.config.second_of
    rows = [
        ("prompt", record.prompt),
        ("status", record.status),
        ("configuration", record.config.label),
        *describe(stats),
    ]
    log = [
        {
            "time": f"{second_of(block.frame):.1f} s",
            "retrieved": [
                f"{second_of(frame):.1f} s ({cosine:.3f})"
                for frame, cosine in zip(block.retrieved, block.similarities, strict=False)
            ],
        }
        for block in blocks
        if block.retrieved
    ]
    return render("memory.html", run=str(folder.path), rows=rows, picture=data_url(picture, "image/png"), blocks=log)


def describe(stats: MemoryStats | None) -> list[tuple[str, str]]:
    """The statistics of a run in words, each with its name."""
    if stats is None:
        return [("retrieved", "nothing: the plain sliding window, or a video too short for frames to leave it")]
    most = ", ".join(f"{time:.1f} s ({count} times)" for time, count in stats.most_retrieved)
    return [
        ("blocks", f"{stats.blocks}, of which {stats.retrieving} retrieved frames"),
        ("coverage", f"{100 * stats.coverage:.0f} % of the candidate frames were retrieved at least once"),
        ("repeated", f"{100 * stats.repeated:.0f} % of retrieved frames were retrieved by the previous block too"),
        ("most retrieved", most),
        ("lookback", f"{stats.lookback:.1f} s (median)"),
        ("near the guard", f"{100 * stats.near_guard:.0f} % of retrieved frames are among the 8 newest candidates"),
        ("cosine", f"{stats.similarity:.3f} (median)"),
    ]
