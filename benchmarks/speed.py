"""Ratios of block times on this machine: ``python benchmarks/speed.py``.

Everything compared runs in turns, block by block, in one process, so that a noisy machine slows both
sides alike. Prints medians, their ratio, and the middle half of the ratios of single pairs.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import WanTransformer3DModel

from llrag_cli.backbones.wan import WanBackbone
from llrag_cli.config import TIERS, MemoryConfig
from llrag_cli.memory.history import History, average_pool
from llrag_cli.rollout import Block, rollout
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule

NATIVE = MemoryConfig(policy="native", window=12, sink=1)
RETRIEVAL = MemoryConfig(policy="retrieval", window=12, sink=1, retrieved=6, guard=5)
MEDIUM: dict[str, Any] = {  # compute bound on a CPU: about 44 GFLOP a block
    "num_attention_heads": 3,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 256,
    "freq_dim": 256,
    "ffn_dim": 1536,
    "num_layers": 4,
}
SHAPE, TEXT = (16, 16, 26), 512  # 104 tokens a latent frame
FRAMES = 1500


def blocks(transformer: WanTransformer3DModel, memory: MemoryConfig, *, shape: tuple[int, int, int]) -> Iterator[Block]:
    """A rollout with a backbone of its own, as long as is asked of it, up to ``FRAMES``."""
    text_dim = transformer.config.text_dim
    return rollout(
        WanBackbone(copy.deepcopy(transformer)),
        torch.randn(1, TEXT, text_dim, generator=torch.Generator().manual_seed(0)),
        frames=FRAMES,
        shape=shape,
        block=3,
        schedule=FlowMatchSchedule(steps=[1000, 750, 500, 250], shift=5.0),
        memory=memory,
        history=History(average_pool, frames=FRAMES),
        noise=AddressedNoise(0),
    )


def in_turns(
    *rollouts: Iterator[Block], count: int, clock: Callable[[], float] = time.perf_counter
) -> list[list[float]]:
    """Seconds by a clock of each block of rollouts that run in turns."""
    times: list[list[float]] = [[] for _ in rollouts]
    sides = list(range(len(rollouts)))
    for _ in range(count):
        for side in sides:
            started = clock()
            next(rollouts[side])
            times[side].append(clock() - started)
        sides.reverse()
    return times


def report(title: str, above: list[float], below: list[float]) -> None:
    """One line: medians in milliseconds and their ratio."""
    pairs = sorted(a / b for a, b in zip(above, below, strict=True))
    low, high = pairs[len(pairs) // 4], pairs[3 * len(pairs) // 4]
    a, b = statistics.median(above), statistics.median(below)
    sys.stdout.write(f"{title}: {1e3 * a:.1f} / {1e3 * b:.1f} ms = {a / b:.3f}  (middle half {low:.3f}-{high:.3f})\n")


def parts(title: str, finished: list[Block]) -> None:
    """Where a block's time goes."""
    total = sum(sum(block.seconds.values()) for block in finished)
    shares = {name: sum(block.seconds[name] for block in finished) / total for name in finished[0].seconds}
    sys.stdout.write(f"{title}: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()) + "\n")


def tiers(transformer: WanTransformer3DModel, *, pairs: int, clock: Callable[[], float]) -> None:
    """Blocks of each tier of the archive against `device`, all recalling K frames."""
    kept = [blocks(transformer, RETRIEVAL.model_copy(update={"archive": tier}), shape=SHAPE) for tier in TIERS]
    in_turns(*kept, count=9)
    times = in_turns(*kept, count=pairs, clock=clock)
    for tier, above in zip(TIERS[1:], times[1:], strict=True):
        report(f"archive {tier} / device", above, times[0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiers", action="store_true", help="compare tiers of the archive instead")
    parser.add_argument("--cpu-time", action="store_true", help="of tiers: the process's own time, on a busy machine")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of blocks for retrieval against window")
    parser.add_argument("--late", type=int, default=300, help="block that block 20 is compared with")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    medium = WanTransformer3DModel(**MEDIUM)
    if arguments.tiers:
        tiers(medium, pairs=arguments.pairs, clock=time.process_time if arguments.cpu_time else time.perf_counter)
        return
    native, retrieval = blocks(medium, NATIVE, shape=SHAPE), blocks(medium, RETRIEVAL, shape=SHAPE)
    in_turns(retrieval, native, count=9)  # until both attend to 12 frames
    report("retrieval / window, equal context", *in_turns(retrieval, native, count=arguments.pairs))
    parts("retrieval, parts of a block", [next(retrieval) for _ in range(5)])
    parts("window, parts of a block", [next(native) for _ in range(5)])

    from llrag_cli.tiny.model import LATENT, load_embedded

    transformer, _, _ = load_embedded()
    for name, memory in (("window", NATIVE), ("retrieval", RETRIEVAL)):
        long, short = (blocks(transformer, memory, shape=LATENT) for _ in range(2))
        for _ in range(arguments.late - 10):
            next(long)
        for _ in range(10):
            next(short)
        report(f"block {arguments.late} / block 20, embedded model, {name}", *in_turns(long, short, count=20))

    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "llrag_cli", "--help"], check=True, stdout=subprocess.DEVNULL)
    sys.stdout.write(f"llrag --help: {time.perf_counter() - started:.2f} s\n")


if __name__ == "__main__":
    main()
