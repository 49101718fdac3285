"""Blocks of a full-size backbone with random weights, end to end: ``python benchmarks/gpu.py``.

Speed does not depend on the values of weights, so nothing need be downloaded: Wan2.1-T2V-1.3B at 480x832 in bfloat16,
native and retrieval, eager and compiled, with and without decoding. Prints a Markdown table: milliseconds a block
once the window is full and the memory recalls K frames, pixel frames a second, peak memory, and retrieval / native.

``--small`` runs the same script on toy sizes, on any device, to see that it works; its numbers mean nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from llrag_cli.backbones.checkpoints import cast
from llrag_cli.config import MemoryConfig
from llrag_cli.files.video import VideoSink
from llrag_cli.memory.encoder import EncoderConfig, LatentAutoencoder
from llrag_cli.memory.history import History, average_pool
from llrag_cli.pipeline import Execution, place
from llrag_cli.rollout import rollout
from llrag_cli.sampling.noise import AddressedNoise
from llrag_cli.sampling.schedule import FlowMatchSchedule
from llrag_cli.vae import WanDecoder

FULL: dict[str, Any] = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
}
SMALL: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
}
METHODS = {
    "native": MemoryConfig(policy="native", window=12, sink=1),
    "retrieval": MemoryConfig(
        policy="retrieval", window=12, sink=1, retrieved=6, guard=5, keys="encoder", archive="host"
    ),
}
BLOCK, STEPS, FULL_FROM = 3, (1000, 750, 500, 250), 9  # from block 8 on the memory recalls all K frames


class Nowhere:
    """A writer that only waits for frames."""

    frames = 0

    def write(self, frames: torch.Tensor) -> None:
        """Count frames [T, 3, H, W]."""
        frames.cpu()
        self.frames += len(frames)

    def close(self) -> None:
        """Nothing to finish."""


def measure(
    method: str, how: Execution, *, decode: bool, device: torch.device, small: bool, blocks: int
) -> tuple[float, float]:
    """Seconds of a block, end to end, and peak bytes."""
    dtype = torch.float32 if small else torch.bfloat16
    height, width = (8, 12) if small else (60, 104)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    torch.manual_seed(0)
    with torch.device(device):
        transformer = WanTransformer3DModel(**(SMALL if small else FULL))
        vae = AutoencoderKLWan(base_dim=4) if small else AutoencoderKLWan()
        encoder = LatentAutoencoder(EncoderConfig(spatial_h=height, spatial_w=width)).eval()
    cast(transformer, dtype)
    for parameter in vae.parameters():
        parameter.data = parameter.data.to(dtype)
    backbone = place(transformer, device, how)
    memory = METHODS[method]
    prompt = torch.randn(1, 512, transformer.config.text_dim, generator=torch.Generator().manual_seed(1))
    writing = rollout(
        backbone,
        prompt.to(device, dtype),
        frames=BLOCK * (FULL_FROM + blocks),
        shape=(16, height, width),
        block=BLOCK,
        schedule=FlowMatchSchedule(steps=STEPS, shift=5.0),
        memory=memory,
        history=History(encoder if memory.keys == "encoder" else average_pool),
        noise=AddressedNoise(0),
    )

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    with torch.no_grad():
        if not decode:
            for _ in range(FULL_FROM):
                next(writing)
            start = finished()
            for _ in writing:
                pass
            seconds = (finished() - start) / blocks
        else:
            with VideoSink(WanDecoder(vae), Nowhere()) as sink:  # type: ignore[arg-type]
                for _ in range(FULL_FROM):
                    sink.put(next(writing).latents)
                start = finished()
                for block in writing:
                    sink.put(block.latents)
            seconds = (
                finished() - start
            ) / blocks  # with up to three blocks of decoding from before, so rather too long
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return seconds, float(peak)


def say(text: str) -> None:
    """One line of the table, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> None:
    """Measure every combination and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    say(f"{name}, torch {torch.__version__}{', toy sizes: numbers mean nothing' if options.small else ''}\n")
    say("| backbone | decoding | method | ms a block | frames a second | peak GB | retrieval / native |")
    say("|---|---|---|---|---|---|---|")
    for how in (Execution(), Execution(compile=True)):
        for decode in (False, True):
            times: dict[str, list[float]] = {method: [] for method in METHODS}
            peaks = dict.fromkeys(METHODS, 0.0)
            for _ in range(options.repeats):  # in turns, so that a noisy machine slows both alike
                for method in METHODS:
                    seconds, peak = measure(
                        method, how, decode=decode, device=device, small=options.small, blocks=options.blocks
                    )
                    times[method].append(seconds)
                    peaks[method] = max(peaks[method], peak)
            ratio = statistics.median(
                after / before for before, after in zip(times["native"], times["retrieval"], strict=True)
            )
            for method in METHODS:
                block = statistics.median(times[method])
                say(
                    f"| {'compiled' if how.compile else 'eager'} | {'yes' if decode else 'no'} | {method} "
                    f"| {1000 * block:.1f} | {4 * BLOCK / block:.1f} | {peaks[method] / 1e9:.1f} "
                    f"| {f'{ratio:.3f}' if method == 'retrieval' else ''} |"
                )


if __name__ == "__main__":
    main()
