"""What each memory rule costs: ``python benchmarks/memory_costs.py --out docs/memory-rules-study-2/costs.csv``.

One video for each rule, in one process and in turns, block by block, with every second round in reverse order. The CSV
has the quotients of block times with `nearest` (median and middle half), the bytes of the archive of a video of
``--seconds``, and the pages and bytes that are copied from it for each block.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from llrag_cli import load_config
from llrag_cli.config import RunConfig
from llrag_cli.engine.pipeline import Pipeline, memory_plan
from llrag_cli.evaluation.speed import in_turns, ratio

BASE = "nearest"
RULES: Mapping[str, tuple[str, ...]] = {  # the strategy, and settings
    BASE: ("nearest",),
    "native": ("none",),
    "commit-recent": ("nearest", "memory.commit=recent"),
    "commit-self": ("nearest", "memory.commit=self"),
    "times-interpolated": ("nearest", "memory.times=interpolated"),
    "last-step": ("nearest", "memory.read_steps=1"),
    "last-layers": ("nearest", "memory.read_layers=3"),
    "aligned": ("nearest", "memory.alignment=0.35"),
    "keys-attention": ("nearest", "memory.keys=attention"),
    "keys-average": ("nearest", "memory.keys=average"),
    "v-spaced": ("spaced",),
    "v-prompt": ("prompt",),
    "v-mean-sink": ("mean-sink",),
}
PROMPT = "a red circle bounces around on a striped blue wall"
WARMUP = 12  # blocks until the window is full and K frames are retrieved, of the presets with a window of 12


@dataclass(frozen=True)
class Cost:
    """A line of the CSV."""

    rule: str
    settings: str
    milliseconds: float  # of a block, median
    ratio: float  # of block times to those of `nearest`: median and middle half of pairs
    quarter: float
    three_quarters: float
    archive: int  # bytes of a video
    pages: float  # copied from the archive for each block
    copied: int  # bytes of those


def main() -> None:
    """Measure, and write the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV to write")
    parser.add_argument("--backbone", default="tiny-distilled")
    parser.add_argument("--archive", default="host", help="tier of the archive")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), help=f"besides `{BASE}`")
    parser.add_argument("--pairs", type=int, default=40, help="blocks of each rule that are timed")
    parser.add_argument("--warmup", type=int, default=WARMUP, help="blocks of each rule that are not")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a video, for the size of its archive")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="the process's own time, on a busy machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    configs = {
        name: config_of(options.backbone, name, options.archive) for name in dict.fromkeys((BASE, *options.rules))
    }
    found = measure(configs, warmup=options.warmup, pairs=options.pairs, seconds=options.seconds, clock=clock)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Cost)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(cost) for cost in found)
    for cost in found:
        sys.stdout.write(
            f"{cost.rule}: {cost.ratio:.3f} [{cost.quarter:.3f}, {cost.three_quarters:.3f}], {cost.archive:,} bytes, "
            f"{cost.pages:.1f} pages and {cost.copied:,} bytes a block\n"
        )


def config_of(backbone: str, rule: str, archive: str) -> RunConfig:
    """A preset under a rule."""
    strategy, *settings = RULES[rule]
    if strategy not in ("none", "mean-sink"):
        settings.append(f"memory.archive={archive}")
    return load_config(backbone, memory=strategy, settings=settings)


def measure(
    configs: Mapping[str, RunConfig], *, warmup: int, pairs: int, seconds: float, clock: Callable[[], float]
) -> list[Cost]:
    """The costs of memories that differ in nothing else."""
    weights = Pipeline.load(configs[BASE], device="cpu")
    length = max(seconds, weights.config.second_of(weights.config.backbone.frames_per_block * (warmup + pairs)))
    with tempfile.TemporaryDirectory() as scratch:
        sides = [blocks_of(weights.with_memory(config), length, Path(scratch), clock) for config in configs.values()]
        in_turns(sides, warmup)
        turns = in_turns(sides, pairs)
    times = {name: [seconds for seconds, _ in found] for name, found in zip(configs, turns, strict=True)}
    moved = {name: statistics.mean(pages for _, pages in found) for name, found in zip(configs, turns, strict=True)}
    return [
        cost_of(name, config, times[name], times[BASE], moved=moved[name], seconds=seconds)
        for name, config in configs.items()
    ]


def blocks_of(
    pipeline: Pipeline, seconds: float, scratch: Path, clock: Callable[[], float]
) -> Callable[[], tuple[float, int]]:
    """A function that generates the next block of a video, and returns its time and the pages it copied."""
    blocks = pipeline.start(PROMPT, seconds=seconds, scratch=scratch)

    def turn() -> tuple[float, int]:
        began = clock()
        block = next(blocks)
        return clock() - began, block.moved

    return turn


def cost_of(
    name: str, config: RunConfig, times: Sequence[float], base: Sequence[float], *, moved: float, seconds: float
) -> Cost:
    """The line of a rule."""
    parts = memory_plan(config, device="cpu", seconds=seconds).parts
    archive = sum(part.bytes for part in parts if part.name.startswith("archive"))
    quotient = ratio(times, base)
    return Cost(
        rule=name,
        settings=" ".join((f"memory.strategy={RULES[name][0]}", *RULES[name][1:])),
        milliseconds=round(1e3 * statistics.median(times), 3),
        ratio=round(quotient["median"], 4),
        quarter=round(quotient["quarter"], 4),
        three_quarters=round(quotient["three_quarters"], 4),
        archive=archive,
        pages=round(moved, 3),
        copied=round(moved * archive / config.latent_frames(seconds)),
    )


if __name__ == "__main__":
    main()
