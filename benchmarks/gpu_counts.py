"""What does a block ask of a GPU besides its arithmetic? ``python benchmarks/gpu_counts.py --csv FILE``.

Self-Forcing, and Causal-Forcing frame by frame, at 832x480 with all 30 layers, on the fake GPU of the tests, which
counts and computes nothing. One block in the middle of a video is counted, with all frames retrieved that a block
retrieves, and the peak of the whole video.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from torch import Tensor

from gpu_machine import Machine, fake_machine
from llrag_cli.cache.sharing import Sharing
from llrag_cli.config import ModelShape
from llrag_cli.planning import plan
from llrag_cli.presets import load_config

GATHER = (  # where the context is brought to the buffers, but for the products of its rotation
    "cache/kv:_fill",
    "cache/kv:in_float32",
    "cache/rotary:rotate_into",
)


@dataclass(frozen=True)
class Case:
    """What is counted."""

    memory: str = "none"
    settings: tuple[str, ...] = ()
    preset: str = "self-forcing"
    sharing: Sharing = "none"
    switches: bool = False
    graphs: bool = False


HOST, FRAMEWISE = ("memory.archive=host",), "causal-forcing-framewise"
CASES = {
    "`none`": Case(),
    "`none`, with a switch": Case(switches=True),
    "`none`, `--share-buffers values`": Case(sharing="values"),
    "`nearest` on `host`": Case("nearest", HOST),
    "`nearest` on `host`, `--share-buffers values`": Case("nearest", HOST, sharing="values"),
    "`nearest` on `host`, `--share-buffers all`": Case("nearest", HOST, sharing="all"),
    "`nearest` by `recompute`": Case("nearest", ("memory.archive=recompute",)),
    "`none`, frame by frame": Case(preset=FRAMEWISE),
    "`none`, frame by frame, `--cuda-graphs`": Case(preset=FRAMEWISE, graphs=True),
}


@dataclass(frozen=True)
class Replayed:
    """A recorded pass, of which the GPU is not asked anything more but to start it."""

    output: Tensor
    counted: Counter[str]

    def replay(self) -> None:
        self.counted["graphs"] += 1


@dataclass(frozen=True)
class Graphs:
    """Records passes as CUDA graphs are recorded, and counts how often they are started."""

    counted: Counter[str] = field(default_factory=Counter)

    def record(self, work: Callable[[], Tensor]) -> Replayed:
        return Replayed(work(), self.counted)


def count(name: str, layers: int, frames: int, scratch: Path) -> dict[str, Any]:
    """A row of the table."""
    case = CASES[name]
    graphs = Graphs()
    started = [0]  # graphs, when each block began

    def watch(session: Any, block: int) -> None:
        started.append(graphs.counted["graphs"])
        if case.switches and block == 4:
            session.switch("another embedding")

    config = load_config(case.preset, memory=case.memory, settings=case.settings)
    with fake_machine(layers, sharing=case.sharing) as machine:
        held = machine.gpu.live
        machine.pipeline.backbone.recorder = graphs if case.graphs else None
        video = machine.make(
            *case.settings, preset=case.preset, memory=case.memory, blocks=frames // config.backbone.frames_per_block,
            scratch=scratch, switch=watch,
        )  # fmt: skip
        decoding = _decoding(machine)
    block = video.steady
    budget = plan(
        config, Path("nothing"), device=torch.device("cpu"), dtype=torch.bfloat16, seconds=8,
        shape=ModelShape(num_layers=layers), switches=case.switches, prompts=(), sharing=case.sharing,
        cuda_graphs=case.graphs,
    )  # fmt: skip
    on_device = [part for part in budget.parts if not part.name.startswith("archive")]
    unused = 0 if case.memory != "none" else _bytes(machine.pipeline.encode_key)
    return {
        "case": name,
        "small_copies": block.small_copies.total(),
        "host_waits": block.host_waits.total(),
        "waits_for_writes": sum(wait.site == "cache/archive:settle" for wait in block.waits),
        "kernels": block.kernels.total(),
        "graphs": started[-2] - started[-3],
        "traffic": block.traffic.total(),
        "gather_kernels": _at(block.kernels, GATHER),
        "gather_traffic": _at(block.traffic, GATHER),
        "attention_traffic": _at(block.traffic, ("models/wan/transformer:attend",)),
        "flops": block.flops.total(),
        "to_device": block.moved_to_device,
        "to_host": block.moved_to_host,
        "loaded": held - unused,
        "peak": video.peak - unused + decoding,
        "planned": sum(part.bytes for part in on_device),
    }


def _decoding(machine: Machine) -> int:
    """Bytes that decoding takes at its peak."""
    gpu = machine.gpu
    stream, latent = machine.pipeline.decoder.stream(), torch.empty(1, 1, 16, 60, 104, device="cuda")
    before = gpu.live
    for _ in range(3):
        gpu.forget_peak()
        stream.decode(latent)
    return gpu.peak - before


def _bytes(module: Any) -> int:
    return sum(each.numel() * each.element_size() for each in module.parameters())


def _at(counted: Counter[str], sites: tuple[str, ...]) -> int:
    return sum(counted[site] for site in sites)


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--frames", type=int, default=27, help="of each video; the last block but one is counted")
    parser.add_argument("--csv", type=Path, help="file for the table")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            rows.append(count(case, options.layers, options.frames, Path(scratch)))
            sys.stdout.write(", ".join(f"{name} {value}" for name, value in rows[-1].items()) + "\n")
            sys.stdout.flush()
    if options.csv is not None:
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
