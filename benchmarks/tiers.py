"""What each tier of the archive costs: ``python benchmarks/tiers.py``.

A model that keeps a CPU busy (``benchmarks/medium.yaml``, random weights) writes one video under each tier, in turns,
block by block, all recalling K frames. Prints medians, their ratio to `device`, and the middle half of single pairs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from llrag_cli import load_config
from llrag_cli.config import TIERS
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.evaluation.random_weights import random_pipeline
from llrag_cli.evaluation.speed import in_turns, ratio
from llrag_cli.presets import load_shape

SETTINGS = ("backbone.height=16", "backbone.width=26", "memory.keys=average")
SECONDS = 60


def block_times(pipeline: Pipeline, folder: Path, clock: Callable[[], float]) -> Callable[[], float]:
    """Seconds by a clock of the next block of a video, each time it is called."""
    blocks = pipeline.blocks(["a video"], seconds=SECONDS, scratch=folder)

    def seconds() -> float:
        started = clock()
        next(blocks)
        return clock() - started

    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=20, help="blocks of each tier")
    parser.add_argument("--cpu-time", action="store_true", help="the process's own time, on a busy machine")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    clock = time.process_time if given.cpu_time else time.perf_counter
    shape = load_shape(Path(__file__).parent / "medium.yaml")
    configs = [
        load_config("self-forcing", method="retrieval", settings=[*SETTINGS, f"memory.archive={tier}"])
        for tier in TIERS
    ]
    first = random_pipeline(configs[0], shape, device=torch.device("cpu"), dtype=torch.float32, how=Execution())
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / tier for tier in TIERS]
        sides = []
        for config, folder in zip(configs, folders, strict=True):
            folder.mkdir()
            sides.append(block_times(first if config is configs[0] else first.beside(config), folder, clock))
        in_turns(sides, 9)  # until the window is full and memory recalls all
        times = in_turns(sides, given.pairs)
    for tier, above in zip(TIERS[1:], times[1:], strict=True):
        found = ratio(above, times[0])
        sys.stdout.write(
            f"{tier} / device: {1e3 * statistics.median(above):.1f} / {1e3 * statistics.median(times[0]):.1f} ms = "
            f"{found['median']:.3f} (middle half {found['quarter']:.3f}-{found['three_quarters']:.3f})\n"
        )


if __name__ == "__main__":
    main()
