"""Does a video cost the same however long it is? ``python benchmarks/growth.py --plot docs/growth.png``.

For each tier of the archive, in a process of its own: one long video of the embedded model, and at blocks 20, 200,
1000 and 5000 a fresh one, which takes turns with it, block by block, so that a noisy machine slows both alike. Prints
the median time of its blocks, the ratio to the fresh video's blocks from 20 on, and resident memory. It uses few
sampling steps, since only ratios matter; every part that could grow (search, archive, clean pass) is as always.

``--search`` measures a search over a million keys instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from llrag_cli.cache.tiers import TIERS
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.engine.rollout import Block
from llrag_cli.formatting import human
from llrag_cli.memory.candidates import cosine_similarities, top
from llrag_cli.presets import load_config

MARKS = (20, 200, 1000, 5000)
PROMPT = "a red circle bounces around on a striped blue wall"
FLAT = ("disk", "recompute")  # tiers that keep nothing in memory


def resident() -> dict[str, int]:
    """Bytes of this process in memory: its own (anonymous), and pages of mapped files, which the system may drop."""
    sizes = {}
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name in ("RssAnon", "RssFile"):
            sizes[name] = 1024 * int(rest.split()[0])
    return sizes


def video(pipeline: Pipeline, blocks: int) -> Iterator[Block]:
    """A new video of so many blocks."""
    config = pipeline.config
    frames = blocks * config.backbone.frames_per_block
    return pipeline.start(PROMPT, seconds=config.video_frames(frames) / config.backbone.fps)


def timed(blocks: Iterator[Block], clock: Callable[[], float]) -> tuple[float, Block]:
    """Seconds of the next block by a clock, and the block."""
    started = clock()
    block = next(blocks)
    return clock() - started, block


def measure(tier: str, *, steps: list[int], last: int, pairs: int, clock: Callable[[], float]) -> dict[str, Any]:
    """One tier in this process."""
    settings = (f"memory.archive={tier}", f"sampler.steps={steps}")
    pipeline = Pipeline.load(load_config("tiny", settings=settings), device="cpu")
    marks = [mark for mark in MARKS if mark <= last]
    long, made = video(pipeline, last + pairs + 1), 0
    points, retrieved, moved = [], 0, 0
    for mark in marks:
        for _ in range(mark - made):
            block = next(long)
            retrieved, moved = retrieved + sum(map(len, block.retrieved)), moved + block.moved
        made = mark
        memory = resident()
        fresh = video(pipeline, marks[0] + pairs + 1)
        for _ in range(marks[0]):
            next(fresh)
        late, early = [], []
        pages = [0, 0]  # copied to the device in the blocks that are timed
        for turn in range(pairs):
            sides = ((0, long, late), (1, fresh, early))
            for side, blocks, times in sides if turn % 2 else sides[::-1]:
                seconds, block = timed(blocks, clock)
                times.append(seconds)
                pages[side] += block.moved
        made += pairs
        ratios = sorted(a / b for a, b in zip(late, early, strict=True))
        points.append(
            {
                "block": mark,
                "ms": 1e3 * statistics.median(late),
                "ratio": statistics.median(late) / statistics.median(early),
                "moved": [count / pairs for count in pages],
                "middle_half": [ratios[pairs // 4], ratios[3 * pairs // 4]],
                **memory,
            }
        )
        del fresh, blocks, sides
    rate = 1 - moved / retrieved if retrieved else None
    return {"tier": tier, "points": points, "hit_rate": rate}


def search(*, keys: int, count: int = 6) -> None:
    """Search over many keys, by batch and size of a key: median of wall time and of processor time."""
    for batch, size in ((4, 16), (4, 64), (4, 128), (1, 1024)):
        many = torch.randn(batch, keys, size)
        many.div_(many.norm(dim=2, keepdim=True))
        query = many[:, -1].clone()
        times = []
        for _ in range(7):
            started, own = time.perf_counter(), time.process_time()
            top(cosine_similarities(query, many[:, 1 : keys - 12]), count)
            times.append((time.perf_counter() - started, time.process_time() - own))
        wall, own = (1e3 * statistics.median(part) for part in zip(*times, strict=True))
        echo(f"| {batch} x {keys:,} keys of {size} | {human(many.numel() * 4)} | {wall:.0f} ms | {own:.0f} ms |")
        del many


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Block times and resident memory over the number of blocks, one line a tier."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    cost, memory = figure.subplots(1, 2)
    for result in results:
        points = result["points"]
        blocks = [point["block"] for point in points]
        ratios, (low, high) = (
            [point["ratio"] for point in points],
            zip(*(p["middle_half"] for p in points), strict=True),
        )
        (line,) = cost.plot(blocks, ratios, marker="o", ms=4, label=result["tier"])
        cost.vlines(blocks, low, high, color=line.get_color(), lw=3, alpha=0.25)  # the middle half of pairs
        held = [(point["RssAnon"] + point["RssFile"]) / 1e6 for point in points]
        memory.plot(blocks, held, marker="o", ms=4, label=result["tier"])
    cost.axhline(1.05, color="#999999", lw=0.8, ls="--")
    cost.set(ylabel="time of a block / block 20", ylim=(0.5, None))
    memory.set(ylabel="resident memory, MB", ylim=(0, None))
    for axes in (cost, memory):
        axes.set(xscale="log", xlabel="block", xticks=MARKS, xticklabels=[str(mark) for mark in MARKS])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    memory.legend(frameon=False)
    figure.savefig(path, dpi=150)


def echo(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure and print a table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiers", nargs="+", choices=TIERS, default=list(TIERS))
    parser.add_argument("--steps", type=int, nargs="+", default=[1000], help="sampling steps of a block")
    parser.add_argument("--last", type=int, default=MARKS[-1], help="the last block to measure")
    parser.add_argument("--pairs", type=int, default=40, help="blocks timed at each mark, and in the fresh video")
    parser.add_argument("--cpu-time", action="store_true", help="the process's own time, on a busy machine")
    parser.add_argument("--results", type=Path, help="JSON file to keep results in; tiers that are in it are not run")
    parser.add_argument("--plot", type=Path, help="PNG file to draw")
    parser.add_argument("--search", action="store_true", help="measure a search over --keys keys instead")
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--only", choices=TIERS, help=argparse.SUPPRESS)  # for the process of one tier
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.search:
        echo("| search | keys | median | of CPU time |\n|---|---|---|---|")
        search(keys=options.keys)
        return
    if options.only:
        clock = time.process_time if options.cpu_time else time.perf_counter
        result = measure(options.only, steps=options.steps, last=options.last, pairs=options.pairs, clock=clock)
        echo(json.dumps(result))
        return
    results: list[dict[str, Any]] = []
    if options.results and options.results.exists():
        results = json.loads(options.results.read_text())
    echo("| tier | block | median | against block 20 | middle half | pages copied: then, at 20 | own memory | mapped |")
    echo("|---|---|---|---|---|---|---|---|")
    for tier in options.tiers:
        if any(result["tier"] == tier for result in results):
            continue
        command = [sys.executable, __file__, "--only", tier, "--steps", *map(str, options.steps)]
        command += ["--threads", str(options.threads), "--last", str(options.last), "--pairs", str(options.pairs)]
        command += ["--cpu-time"] if options.cpu_time else []
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        results.append(result)
        if options.results:
            options.results.write_text(json.dumps(results, indent=1) + "\n")
        for point in result["points"]:
            low, high = point["middle_half"]
            then, at_20 = point["moved"]
            echo(
                f"| {tier} | {point['block']} | {point['ms']:.1f} ms | {point['ratio']:.3f} | {low:.3f}-{high:.3f} "
                f"| {then:.1f}, {at_20:.1f} | {human(point['RssAnon'])} | {human(point['RssFile'])} |"
            )
        echo(f"\n{tier}: {100 * (result['hit_rate'] or 0):.0f} % of retrieved pages were on the device already\n")
        if tier in FLAT and len(result["points"]) > 2:
            first, last = (point["RssAnon"] + point["RssFile"] for point in (result["points"][1], result["points"][-1]))
            echo(f"\n{tier}: memory after block {result['points'][-1]['block']} / block 200: {last / first:.3f}\n")
    if options.plot:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
