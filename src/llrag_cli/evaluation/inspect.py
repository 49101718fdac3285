"""The memory map of one run: what was recalled when, as numbers, a picture and a page."""

from __future__ import annotations

import base64
import html
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from llrag_cli.config import LATENT_SPACES, LatentSpace, MemoryConfig
from llrag_cli.evaluation.encoder.ranking import share_near
from llrag_cli.memory.context import recallable
from llrag_cli.runs.folder import BlockMemory, RunFolder
from llrag_cli.runs.record import RunRecord
from llrag_cli.runs.video import read_frames

THUMBNAIL = 120  # pixels, the longer side


@dataclass(frozen=True)
class Habits:
    """How a run used its memory; times in seconds."""

    blocks: int
    recalling: int  # blocks that recalled anything
    coverage: float  # share of the frames that could ever be recalled, that were
    repeated: float  # share of recalls of a frame that the block before recalled too
    most_recalled: tuple[tuple[float, int], ...]  # times of the frames recalled most often, and how often
    lookback: float  # median time between a block and what it recalled
    near_guard: float  # share of recalls within 8 frames of the newest that could be
    similarity: float  # median cosine


def latent_space(record: dict[str, Any]) -> LatentSpace:
    """How the latent frames of a run relate to its video."""
    return LATENT_SPACES[record["config"]["backbone"]["family"]]


def habits(blocks: Sequence[BlockMemory], memory: MemoryConfig, *, fps: int) -> Habits | None:
    """What the memory log says; None if nothing was recalled."""
    recalling = [block for block in blocks if block.retrieved]
    if not recalling or memory.window is None:
        return None
    counts = Counter(frame for block in recalling for frame in block.retrieved)
    pools = [
        retrievable(start=block.frame, window=memory.window, sink=memory.sink, guard=memory.guard)
        for block in recalling
    ]
    again = [frame in before.retrieved for before, block in itertools.pairwise(recalling) for frame in block.retrieved]
    lookback = [second_of(block.frame - frame, fps) for block in recalling for frame in block.retrieved]
    near = [share_near(block.retrieved, pool[-1]) for block, pool in zip(recalling, pools, strict=True) if pool]
    similar = [value for block in recalling for value in block.similarities]
    return Habits(
        blocks=len(blocks),
        recalling=len(recalling),
        coverage=len(counts) / max(1, len(pools[-1])),
        repeated=sum(again) / len(again) if again else 0.0,
        most_recalled=tuple((second_of(frame, fps), count) for frame, count in counts.most_common(5)),
        lookback=float(torch.tensor(lookback).median()),
        near_guard=sum(near) / len(near) if near else 0.0,
        similarity=float(torch.tensor(similar).median()),
    )


def moments(blocks: Sequence[BlockMemory], count: int = 6) -> list[BlockMemory]:
    """Blocks worth showing: spread over those that recalled something, the last one among them."""
    recalling = [block for block in blocks if block.retrieved]
    count = min(count, len(recalling))
    return [recalling[(place + 1) * len(recalling) // count - 1] for place in range(count)]


def thumbnails(video: Path, frames: set[int], *, ratio: int, side: int = THUMBNAIL) -> dict[int, Tensor]:
    """Small pictures [h, w, 3] in [0, 1] of latent frames, each by its last video frame; those the file has.

    ``ratio`` is that of video frames to latent frames.
    """
    wanted = {ratio * frame: frame for frame in frames}
    found: dict[int, Tensor] = {}
    for number, image in enumerate(read_frames(video)):
        if number in wanted:
            scale = max(1, max(image.shape[1:]) // side)
            found[wanted[number]] = torch.nn.functional.avg_pool2d(image[None], scale)[0].permute(1, 2, 0)
        if len(found) == len(wanted):
            break
    return found


def memory_map(record: RunRecord, blocks: Sequence[BlockMemory], pictures: dict[int, Tensor]) -> bytes:
    """A PNG: time of the block against time of what it recalled, coloured by cosine; below, what that looks like."""
    memory = record.config.memory
    fps, shown = record.fps, moments(blocks)
    columns = 1 + max((len(block.retrieved) for block in shown), default=0)
    figure = Figure(figsize=(10, 5 + 1.35 * len(shown)), layout="constrained")
    heights = [5.0, 1.35 * len(shown)] if shown else [5.0]
    chart, *strip = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = chart.subplots()
    points = [
        (second_of(block.frame, fps), second_of(frame, fps), cosine)
        for block in blocks
        for frame, cosine in zip(block.retrieved, block.similarities, strict=False)
    ]
    end = second_of(blocks[-1].frame if blocks else 1, fps)
    if memory.window is not None:
        starts = [block.frame for block in blocks]
        newest = [
            second_of(max(memory.sink, start - memory.window + memory.sink - memory.guard), fps) for start in starts
        ]
        times = [second_of(start, fps) for start in starts]
        axes.fill_between(times, newest, times, color="#999999", alpha=0.18, lw=0, label="in the window, or guarded")
    axes.plot([0, end], [0, end], color="#999999", lw=0.8)
    if points:
        cosines = [cosine for *_, cosine in points]
        norm = Normalize(min(cosines), max(cosines) if max(cosines) > min(cosines) else min(cosines) + 1e-6)
        made, recalled, _ = zip(*points, strict=True)
        axes.scatter(made, recalled, c=cosines, norm=norm, cmap="viridis", s=14)
        chart.colorbar(ScalarMappable(norm, "viridis"), ax=axes, label="cosine")
    for number, block in enumerate(shown, start=1):
        axes.annotate(str(number), (second_of(block.frame, fps), 1.01), xycoords=("data", "axes fraction"), ha="center")
    axes.set(xlabel="seconds: the block being made", ylabel="seconds: what it recalled", xlim=(0, end), ylim=(0, end))
    axes.legend(frameon=False, loc="upper left")
    for part in strip:
        grid = part.subplots(len(shown), columns, squeeze=False)
        for number, (row, block) in enumerate(zip(grid, shown, strict=True), start=1):
            for place, panel in enumerate(row):
                panel.set_axis_off()
                frame = block.frame if place == 0 else next(iter(block.retrieved[place - 1 : place]), None)
                if frame is None or frame not in pictures:
                    continue
                panel.imshow(pictures[frame].numpy(), interpolation="nearest")
                said = f"{second_of(frame, fps):.1f} s"
                if place:
                    said += f" · {block.similarities[place - 1]:.2f}"
                panel.set_title(f"{number}: {said}" if place == 0 else said, fontsize=8, pad=2)
    file = BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def page(
    folder: RunFolder, record: RunRecord, blocks: Sequence[BlockMemory], found: Habits | None, picture: bytes
) -> str:
    """One HTML page, complete in itself: the numbers, the map, and every block's recalls."""
    fps = record.fps
    rows = [
        ("prompt", record.prompt),
        ("status", record.status),
        ("preset", f"{record.config.name} {record.config.method}"),
        *sentences(found),
    ]
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows)
    log = "".join(
        f"<tr><td>{second_of(block.frame, fps):.1f} s</td><td>"
        + ", ".join(
            f"{second_of(frame, fps):.1f} s ({cosine:.3f})"
            for frame, cosine in zip(block.retrieved, block.similarities, strict=False)
        )
        + "</td></tr>"
        for block in blocks
        if block.retrieved
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Memory of {html.escape(str(folder.path))}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }}
img {{ width: 100%; background: white; border-radius: 6px }} h1 {{ font-size: 1.4rem }}
table {{ border-collapse: collapse }} th {{ text-align: left; font-weight: normal; opacity: .7 }}
th, td {{ padding: .15rem 1.2rem .15rem 0; vertical-align: top }}
</style></head><body>
<h1>Memory of <code>{html.escape(str(folder.path))}</code></h1>
<table>{cells}</table>
<p><img alt="What was recalled when" src="data:image/png;base64,{base64.b64encode(picture).decode()}"></p>
<details><summary>Every block</summary>
<table><tr><th>block at</th><th>recalled (cosine)</th></tr>{log}</table></details>
</body></html>
"""


def sentences(found: Habits | None) -> list[tuple[str, str]]:
    """The habits of a run in words."""
    if found is None:
        return [("recalled", "nothing: the native window, or too short for anything to leave it")]
    often = ", ".join(f"{time:.1f} s ({count} times)" for time, count in found.most_recalled)
    return [
        ("blocks", f"{found.blocks}, of which {found.recalling} recalled something"),
        ("coverage", f"{100 * found.coverage:.0f} % of the frames that could be recalled were, at least once"),
        ("repeated", f"{100 * found.repeated:.0f} % of recalls were of a frame that the block before recalled too"),
        ("most recalled", often),
        ("looks back", f"{found.lookback:.1f} s (median)"),
        ("near the guard", f"{100 * found.near_guard:.0f} % of recalls are among the 8 newest frames that could be"),
        ("cosine", f"{found.similarity:.3f} (median)"),
    ]


def as_record(found: Habits | None) -> dict[str, Any]:
    """The habits for programs; empty if nothing was recalled."""
    return {} if found is None else asdict(found)
