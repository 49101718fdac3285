"""How far layers in eight bits are off: ``python benchmarks/eight_bit.py``.

The embedded model writes the same videos in float32, in bfloat16, and in bfloat16 with eight-bit layers. Printed is, as
a table in Markdown, the root mean square of the difference of their latents, in units of the latents' standard
deviation: after one pass from noise, after the first block, and blocks later, when each video has gone on from its own
frames. Without a GPU that
has fp8 only its weights are rounded so, and the activations are not.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llrag_cli import Pipeline, load_config
from llrag_cli.models.eight_bit import FP8_CAPABILITY, is_eight_bit, quantize

BLOCKS = (0, 2, 7)  # that are compared
PROMPTS = (
    "a red circle and a white cross pass by on a striped blue wall",
    "a green triangle bounces around on a plain pink wall",
    "a large yellow square orbits slowly on a dotted gray wall",
    "a small purple cross and an orange circle bounce around on a plain brown wall",
)


def fp8_weights(transformer: Any) -> None:
    """Round weights to fp8 and back, as they are where the products are exact."""
    from torchao.quantization import Float8WeightOnlyConfig, quantize_

    layers = {name for name, _ in transformer.named_modules() if is_eight_bit(f"{name}.weight")}
    quantize_(transformer, Float8WeightOnlyConfig(), filter_fn=lambda _, name: name in layers)


def variants(device: str) -> dict[str, tuple[str, Callable[[Any], None]]]:
    """What is compared: a dtype, and what is done to the transformer."""
    has_fp8 = device.startswith("cuda") and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    rounded: Callable[[Any], None] = (lambda model: quantize(model, "fp8")) if has_fp8 else fp8_weights
    return {
        "float32": ("float32", lambda _: None),
        "bfloat16": ("bfloat16", lambda _: None),
        "bfloat16, int8": ("bfloat16", lambda model: quantize(model, "int8")),
        "bfloat16, fp8" + ("" if has_fp8 else " (weights alone)"): ("bfloat16", rounded),
    }


def videos(
    backbone: str, dtype: str, change: Callable[[Any], None], *, prompts: Sequence[str], seconds: float, device: str
) -> tuple[Tensor, Tensor, list[list[list[int]]]]:
    """Of each prompt: latents [N, T, C, h, w] after one pass, those of a video [N, F, C, h, w], frames retrieved."""
    pipeline = Pipeline.load(load_config(backbone), device=device, dtype=dtype)
    change(pipeline.backbone.transformer)
    one_step = replace(pipeline, config=load_config(backbone, settings=["sampler.steps=[1000]"]))
    passes = torch.cat([next(one_step.start(prompt, seconds=1)).latents for prompt in prompts]).float().cpu()
    latents, retrieved = [], []
    for prompt in prompts:
        blocks = [*pipeline.start(prompt, seconds=seconds)]
        latents.append(torch.cat([block.latents.float().cpu() for block in blocks], dim=1))
        retrieved.append([sorted(block.retrieved[0]) if block.retrieved else [] for block in blocks])
    return passes, torch.cat(latents), retrieved


def difference(one: Tensor, other: Tensor) -> float:
    """Root mean square of the difference, the median over videos [N, ...], in standard deviations of ``other``."""
    return statistics.median(float((a - b).square().mean().sqrt() / b.std()) for a, b in zip(one, other, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny-distilled", help="preset, in four steps as the real ones")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="how many")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    size = load_config(options.backbone).backbone.frames_per_block
    made = {
        name: videos(
            options.backbone, *how, prompts=PROMPTS[: options.prompts], seconds=options.seconds, device=options.device
        )
        for name, how in variants(options.device).items()
    }
    count = made["float32"][1].shape[1] // size
    shown = [block for block in BLOCKS if block < count]
    heads = ["", "one pass", *(f"block {block}" for block in shown), "blocks that retrieve the same"]
    sys.stdout.write(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|\n")
    for name, base in (("bfloat16", "float32"), *((name, "bfloat16") for name in [*made][2:])):
        (once, latents, retrieved), (expected_once, expected, before) = made[name], made[base]
        cells = [f"{difference(once, expected_once):.4f}"]
        for block in shown:
            frames = slice(block * size, (block + 1) * size)
            cells.append(f"{difference(latents[:, frames], expected[:, frames]):.4f}")
        pairs = [(a, b) for one, other in zip(retrieved, before, strict=True) for a, b in zip(one, other, strict=True)]
        same = statistics.fmean(a == b for a, b in pairs if b) if any(b for _, b in pairs) else 1.0
        sys.stdout.write(f"| {name} / {base} | {' | '.join(cells)} | {same:.0%} |\n")


if __name__ == "__main__":
    main()
