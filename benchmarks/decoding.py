"""What compiled norms and the memory layout change for the full VAE: ``python benchmarks/decoding.py``.

On the CPU a decoder with random weights decodes videos in each way, in turns, latent frame by latent frame; the ratio
of processor time to the first way is printed, and how far the frames are apart. ``--count`` counts instead what
decoding one block at 832x480 asks of the fake GPU of the tests, which computes nothing: kernels, and bytes that they
read and write. For compiled norms that is an estimate, in which a norm and its activation are one kernel that reads and
writes once.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock
from torch import Tensor, nn

from fakecuda import FakeGPU
from llrag_cli.evaluation.speed import in_turns, ratio
from llrag_cli.models.layouts import CONTIGUOUS, LAYOUTS, Layout
from llrag_cli.models.wan.vae import WanDecoder

BLOCK = 3  # latent frames
WAYS: dict[str, tuple[bool, Layout]] = {  # compiled, layout
    "eager": (False, "contiguous"),
    "compiled": (True, "contiguous"),
    "channels_last_3d": (False, "channels_last_3d"),
    "compiled, channels_last_3d": (True, "channels_last_3d"),
}


def decoder_of(base_dim: int, layout: Layout, *, compiled: bool) -> WanDecoder:
    """A decoder with random weights, the same for all."""
    torch.manual_seed(0)
    decoder = WanDecoder(AutoencoderKLWan(base_dim=base_dim, latents_mean=[0.0] * 16, latents_std=[1.0] * 16))
    if compiled:
        decoder.compile()
    if layout != CONTIGUOUS:
        decoder.set_layout(layout)
    return decoder


def measure(base_dim: int, height: int, width: int, pairs: int) -> None:
    """Decode in all ways in turns, and print."""
    latents = torch.randn(1, pairs + 3, 16, height, width, generator=torch.Generator().manual_seed(1))
    frames: dict[str, list[Tensor]] = {way: [] for way in WAYS}

    def side(way: str) -> Callable[[], float]:
        compiled, layout = WAYS[way]
        stream = decoder_of(base_dim, layout, compiled=compiled).stream()

        def seconds() -> float:
            index = len(frames[way])
            started = time.process_time()
            frames[way].append(stream.decode(latents[:, index : index + 1]))
            return time.process_time() - started

        return seconds

    sides = [side(way) for way in WAYS]
    in_turns(sides, 3)  # the first frame of a video is another one, and compiling takes long
    times = in_turns(sides, pairs)
    expected = torch.cat(frames["eager"], dim=1)
    for way, taken in zip(WAYS, times, strict=True):
        found, apart = ratio(taken, times[0]), (torch.cat(frames[way], dim=1) - expected).abs().max()
        sys.stdout.write(
            f"{way} / eager: {1e3 * statistics.median(taken):.0f} / {1e3 * statistics.median(times[0]):.0f} ms = "
            f"{found['median']:.3f} (middle half {found['quarter']:.3f}-{found['three_quarters']:.3f}), "
            f"frames differ by at most {apart:.1e}\n"
        )


def count(height: int, width: int, layout: Layout) -> None:
    """Count what decoding a block asks of a GPU, and print."""
    with FakeGPU() as gpu:
        with torch.device("cuda"):
            vae = AutoencoderKLWan(latents_mean=[0.0] * 16, latents_std=[1.0] * 16)
        for parameter in vae.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        decoder = WanDecoder(vae)
        decoder.set_layout(layout)
        pairs = Pairs(gpu, decoder)
        stream, latent = decoder.stream(), torch.empty(1, 1, 16, height, width, device="cuda")
        for _ in range(3):
            gpu.forget_peak()
            before = gpu.live
            stream.decode(latent)
        gpu.reset()
        pairs.counted.clear()
        for _ in range(BLOCK):
            stream.decode(latent)
    kernels, traffic, counted = gpu.kernels.total(), gpu.traffic.total(), pairs.counted
    sys.stdout.write(
        f"{layout}: {kernels} kernels, {traffic / 1e9:.0f} GB, {gpu.flops.total() / 1e12:.1f} TFLOP, "
        f"peak {(gpu.peak - before) / 1e9:.2f} GB above what is kept; of these {counted['pairs']} norms with "
        f"activations: {counted['kernels']} kernels, {counted['traffic'] / 1e9:.0f} GB; as one kernel each "
        f"{counted['once'] / 1e9:.0f} GB, so in all {kernels - counted['kernels'] + counted['pairs']} kernels, "
        f"{(traffic - counted['traffic'] + counted['once']) / 1e9:.0f} GB\n"
    )


class Pairs:
    """What norms and the activations that follow them are counted with."""

    def __init__(self, gpu: FakeGPU, decoder: WanDecoder) -> None:
        self.counted: Counter[str] = Counter()
        self._gpu, half = gpu, decoder.vae.decoder
        blocks = [module for module in half.modules() if isinstance(module, WanResidualBlock)]
        for norm in [half.norm_out, *(norm for block in blocks for norm in (block.norm1, block.norm2))]:
            self._watch(norm)
            norm.register_forward_hook(self._once)
        for activation in {half.nonlinearity, *(block.nonlinearity for block in blocks)}:
            self._watch(activation)

    def _watch(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda *_: self._add(-1))
        module.register_forward_hook(lambda *_: self._add(1))

    def _add(self, sign: int) -> None:
        self.counted["kernels"] += sign * self._gpu.kernels.total()
        self.counted["traffic"] += sign * self._gpu.traffic.total()

    def _once(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.counted["pairs"] += 1
        self.counted["once"] += sum(each.numel() * each.element_size() for each in (*inputs, output))


def main() -> None:
    """Measure or count, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true", help="on the fake GPU, at 832x480 unless a size is given")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of a latent frame")
    parser.add_argument("--base-dim", type=int, default=48, help="channels of the widest picture; 96 are the released")
    parser.add_argument("--pairs", type=int, default=8, help="latent frames decoded in each way")
    options: Any = parser.parse_args()
    if options.count:
        for layout in LAYOUTS:
            count(*(options.size or (60, 104)), layout)
    else:
        torch.set_num_threads(1)
        measure(options.base_dim, *(options.size or (8, 12)), options.pairs)


if __name__ == "__main__":
    main()
