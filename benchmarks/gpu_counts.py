"""What does a block ask of a GPU besides its arithmetic? ``python benchmarks/gpu_counts.py --csv FILE``.

Self-Forcing at 832x480 with all 30 layers, on the fake GPU of the tests, which counts and computes nothing. One block
in the middle of a video is counted, with all frames retrieved that a block retrieves, and the peak of the whole video.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch

from gpu_machine import Machine, fake_machine
from llrag_cli.config import ModelShape
from llrag_cli.planning import plan
from llrag_cli.presets import load_config

GATHER = ("cache/kv:_fill", "cache/archive:read")  # where the context is brought to the buffers, but for its rotation
CASES: dict[str, tuple[str, tuple[str, ...], bool, bool]] = {  # memory, settings, one buffer, with a switch
    "`none`": ("none", (), False, False),
    "`none`, with a switch": ("none", (), False, True),
    "`nearest` on `host`": ("nearest", ("memory.archive=host",), False, False),
    "`nearest` on `host`, `--one-buffer`": ("nearest", ("memory.archive=host",), True, False),
    "`nearest` by `recompute`": ("nearest", ("memory.archive=recompute",), False, False),
}


def count(case: str, layers: int, blocks: int, scratch: Path) -> dict[str, Any]:
    """A row of the table."""
    memory, settings, one_buffer, switches = CASES[case]

    def switch(session: Any, block: int) -> None:
        if switches and block == 4:
            session.switch("another embedding")

    with fake_machine(layers, one_buffer=one_buffer) as machine:
        held = machine.gpu.live
        video = machine.make(*settings, memory=memory, blocks=blocks, scratch=scratch, switch=switch)
        decoding = _decoding(machine)
    block = video.steady
    config = load_config("self-forcing", memory=memory, settings=settings)
    budget = plan(
        config, Path("nothing"), device=torch.device("cpu"), dtype=torch.bfloat16, seconds=8,
        shape=ModelShape(num_layers=layers), switches=switches, prompts=(), one_buffer=one_buffer,
    )  # fmt: skip
    on_device = [part for part in budget.parts if not part.name.startswith("archive")]
    unused = 0 if memory != "none" else _bytes(machine.pipeline.encode_key)
    return {
        "case": case,
        "small_copies": block.small_copies.total(),
        "host_waits": block.host_waits.total(),
        "waits_for_writes": sum(wait.site == "cache/archive:settle" for wait in block.waits),
        "kernels": block.kernels.total(),
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
    parser.add_argument("--blocks", type=int, default=9, help="of each video; the last but one is counted")
    parser.add_argument("--csv", type=Path, help="file for the table")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for case in CASES:
            rows.append(count(case, options.layers, options.blocks, Path(scratch)))
            sys.stdout.write(", ".join(f"{name} {value}" for name, value in rows[-1].items()) + "\n")
            sys.stdout.flush()
    if options.csv is not None:
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
