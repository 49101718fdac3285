"""What each tier of the archive costs: ``python benchmarks/tiers.py``.

A model that keeps a CPU busy (``benchmarks/medium.yaml``, random weights) writes one video under each tier, in turns,
block by block, all retrieving K frames. Prints medians, their ratio to `device`, and the middle half of single pairs.
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
from llrag_cli.cache.tiers import TIERS
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.evaluation.random_weights import random_pipeline
from llrag_cli.evaluation.speed import in_turns, ratio
from llrag_cli.presets import load_shape

SETTINGS = ("backbone.height=16", "backbone.width=26", "memory.keys=average")
SECONDS = 60


def block_times(pipeline: Pipeline, folder: Path, clock: Callable[[], float]) -> Callable[[], float]:
    """A function that generates the next block of a video and returns its seconds by a clock."""
    blocks = pipeline.start("a video", seconds=SECONDS, scratch=folder)

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
    parser.add_argument("--warmup", type=int, default=9, help="blocks of each tier that are not timed")
    parser.add_argument("--shape", type=Path, default=Path(__file__).parent / "medium.yaml", help="sizes of the model")
    parser.add_argument("--cpu-time", action="store_true", help="the process's own time, on a busy machine")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    shape = load_shape(options.shape)
    configs = [load_config("self-forcing", settings=[*SETTINGS, f"memory.archive={tier}"]) for tier in TIERS]
    weights = random_pipeline(configs[0], shape, device=torch.device("cpu"), dtype=torch.float32, how=Execution())
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / tier for tier in TIERS]
        sides = []
        for config, folder in zip(configs, folders, strict=True):
            folder.mkdir()
            sides.append(block_times(weights.with_memory(config), folder, clock))
        in_turns(sides, options.warmup)  # until the window is full and memory retrieves K frames
        times = in_turns(sides, options.pairs)
    for tier, above in zip(TIERS[1:], times[1:], strict=True):
        quotient = ratio(above, times[0])
        sys.stdout.write(
            f"{tier} / device: {1e3 * statistics.median(above):.1f} / {1e3 * statistics.median(times[0]):.1f} ms = "
            f"{quotient['median']:.3f} (middle half {quotient['quarter']:.3f}-{quotient['three_quarters']:.3f})\n"
        )


if __name__ == "__main__":
    main()
