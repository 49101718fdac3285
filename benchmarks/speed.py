"""Does a late block of a video cost more than an early one? ``python benchmarks/speed.py``.

Two sessions of the embedded model take turns, block by block, in one process, one far ahead of the other. Everything
else about speed is in ``llrag bench speed``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch

from llrag_cli import Pipeline, load_config
from llrag_cli.engine.rollout import Block
from llrag_cli.evaluation.speed import in_turns, ratio

PROMPT = "a red circle bounces around on a blue wall"


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
    parser.add_argument("--early", type=int, default=20, help="block in the middle of the early ones")
    parser.add_argument("--late", type=int, default=300, help="block in the middle of the late ones")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    steps = ["sampler.steps=[1000, 750, 500, 250]"]  # as many as the real backbones take
    for memory in ("none", "nearest"):
        pipeline = Pipeline.load(load_config("tiny", memory=memory, settings=steps), device="cpu")
        sides = [
            ahead(pipeline.start(PROMPT, seconds=10_000), block - options.pairs // 2)
            for block in (options.late, options.early)
        ]
        late, early = in_turns(sides, options.pairs)
        quotient = ratio(late, early)
        sys.stdout.write(
            f"block {options.late} / block {options.early}, {memory}: {1e3 * statistics.median(late):.1f} / "
            f"{1e3 * statistics.median(early):.1f} ms = {quotient['median']:.3f} "
            f"(middle half {quotient['quarter']:.3f}-{quotient['three_quarters']:.3f})\n"
        )


if __name__ == "__main__":
    main()
