"""Does a late block of a video cost more than an early one? ``python benchmarks/speed.py``.

Two videos of the embedded model run in turns, block by block, in one process, one far ahead of the other. All else
about speed is in ``llrag bench speed``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch

from llrag_cli import Pipeline, load_config
from llrag_cli.engine.rollout import Block
from llrag_cli.evaluation.speed import in_turns, ratio
from llrag_cli.presets import METHODS


def ahead(video: Iterator[Block], blocks: int) -> Callable[[], float]:
    """The wall seconds of the next block of a video, each time it is called, ``blocks`` from its start."""
    for _ in range(blocks):
        next(video)

    def seconds() -> float:
        started = time.perf_counter()
        next(video)
        return time.perf_counter() - started

    return seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=20, help="pairs of blocks")
    parser.add_argument("--late", type=int, default=300, help="block that block 20 is compared with")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = ["sampler.steps=[1000, 750, 500, 250]"]  # as many as the real backbones take
    for method in METHODS:
        loaded = Pipeline.load(load_config("tiny", method=method, settings=steps), device="cpu")
        video = partial(Pipeline.blocks, prompts=["a red circle bounces around on a blue wall"], seconds=10_000)
        late = ahead(video(loaded), options.late - options.pairs // 2)
        early = ahead(video(loaded.beside(loaded.config)), 20 - options.pairs // 2)
        above, below = in_turns([late, early], options.pairs)
        found = ratio(above, below)
        sys.stdout.write(
            f"block {options.late} / block 20, {method}: {1e3 * statistics.median(above):.1f} / "
            f"{1e3 * statistics.median(below):.1f} ms = {found['median']:.3f} "
            f"(middle half {found['quarter']:.3f}-{found['three_quarters']:.3f})\n"
        )


if __name__ == "__main__":
    main()
