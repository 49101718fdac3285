"""Train the embedded backbone by teacher forcing on latent clips."""

from __future__ import annotations

import logging
import random
import re
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llrag_cli.training.embedded.lessons import Batch, Lessons
from llrag_cli.training.embedded.network import Network, Teacher, spread
from llrag_cli.training.embedded.optim import optimizers
from llrag_cli.world.sprites import SHAPES

logger = logging.getLogger(__name__)

PROBED_LAYER = 4  # of eight; the shapes are predicted from its tokens
PROBE_WEIGHT = 1.0
OUTPUTS = ("attn1.to_out", "attn2.to_out", "ffn.net.2")  # of the residual branches of a layer
TRAIN_SHIFT = 3.0  # sigmas are drawn uniformly, then shifted towards noise


def train_backbone(
    lessons: Lessons,
    out: Path,
    *,
    steps: int,
    seed: int = 0,
    teacher: Teacher | None = None,
    match_states: str | None = None,
    keep_text: bool = False,
    resume: Path | None = None,
    matrix_lr: float = 1e-2,
    other_lr: float = 2e-3,
    flat: float = 0.4,
    minutes: float | None = None,
) -> None:
    """Train transformer and text encoder together; averaged weights are written to ``out``.

    The targets are those of ``losses``; with ``match_states`` also the tokens of a ``teacher`` (``HiddenStates``),
    `apart` or `together`. With ``keep_text`` its text encoder is taken as it is, as the real backbones share theirs.
    Learning rates are constant for the share ``flat`` of the steps, and then fall linearly. Training ends after
    ``minutes``, if they are over before the steps are; the learning rates fall accordingly.
    """
    network = Network.new(seed=seed)
    model = network.model
    if resume is not None:
        model.load_state_dict(grown(load_file(resume), model))
    if teacher is not None and keep_text:
        network.text.load_state_dict(teacher.network.text.state_dict())
        network.text.requires_grad_(requires_grad=False)
    probe = ShapeProbe(network.forced.transformer)
    states = None
    if teacher is not None and match_states is not None:
        asked = teacher.network.forced.transformer
        states = HiddenStates(network.forced.transformer, asked, apart=match_states == "apart")
    optims = optimizers(nn.ModuleDict({**model, "probe": probe.read}), matrix_lr=matrix_lr, other_lr=other_lr)
    groups = [(group, group["lr"]) for optim in optims for group in optim.param_groups]
    average = {name: value.clone() for name, value in model.state_dict().items()}
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    began = saved = time.monotonic()
    recent: dict[str, dict[str, float]] = {}
    for step in range(steps):
        passed = (time.monotonic() - began) / (60 * minutes) if minutes else 0.0
        if passed >= 1:
            break
        progress = max(step / steps, passed)
        factor = min(1.0, (step + 1) / 50) * (1.0 if progress < flat else max(0.02, (1 - progress) / (1 - flat)))
        for group, rate in groups:
            group["lr"] = rate * factor
        kind, drawn = lessons.draw(step, network.text, rng)
        probe.teaches = resume is None or step >= 100
        flow, shapes = losses(network, probe, drawn, generator=generator, teacher=teacher)
        terms = {"flow": flow, "shapes": PROBE_WEIGHT * shapes}
        if states is not None:
            terms["states"] = states.loss()
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        for name, value in model.state_dict().items():
            average[name].lerp_(value, max(0.004, 1 / (step + 2)))
        known = recent.setdefault(kind, {name: term.item() for name, term in terms.items()})
        for name, term in terms.items():
            known[name] += 0.05 * (term.item() - known[name])
        if (step + 1) % 50 == 0:
            report = "; ".join(
                f"{kind}: " + ", ".join(f"{name} {value:.4f}" for name, value in known.items())
                for kind, known in recent.items()
            )
            logger.info("step %d of %d: %s", step + 1, steps, report)
        if time.monotonic() - saved > 180:
            saved = time.monotonic()
            save_weights(average, out)
    save_weights(average, out)


def grown(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights in float32, of a model with fewer layers and words, as those of a larger one that computes the same.

    New layers are spread among the old ones: each is a copy of the one before it, whose outputs are zero. Embeddings of
    new words are as the larger model has them.
    """
    own = model.state_dict()
    weights = {name: value.float() for name, value in weights.items()}
    layer = re.compile(r"transformer\.blocks\.(\d+)\.(.*)")
    old = 1 + max(int(found[1]) for name in weights if (found := layer.match(name)))
    new = 1 + max(int(found[1]) for name in own if (found := layer.match(name)))
    source = [index * old // new for index in range(new)]
    result = {}
    for name, value in own.items():
        found = layer.match(name)
        if found:
            index = int(found[1])
            theirs = weights[f"transformer.blocks.{source[index]}.{found[2]}"]
            copied = index > 0 and source[index] == source[index - 1]
            result[name] = torch.zeros_like(theirs) if copied and found[2].startswith(OUTPUTS) else theirs
        elif weights[name].shape == value.shape:
            result[name] = weights[name]
        else:
            result[name] = value.clone()
            result[name][: len(weights[name])] = weights[name]
    return result


def save_weights(average: dict[str, Tensor], out: Path) -> None:
    """Write averaged weights in half precision."""
    save_file({name: value.half().contiguous() for name, value in average.items()}, out)


class ShapeProbe:
    """Predicts shapes from the tokens of a middle layer, which speeds up learning; not part of the released weights.

    REPA (Yu et al. 2024) does this with features of another network, here the target is the renderer's ground truth.
    """

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        config = transformer.config
        self.read = nn.Linear(config.num_attention_heads * config.attention_head_dim, len(SHAPES) * 4)
        self.hidden: Tensor | None = None
        self.teaches = True  # otherwise it learns to read, and the transformer learns nothing from it
        transformer.blocks[PROBED_LAYER].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.hidden = output

    def loss(self, shapes: Tensor) -> Tensor:
        """Cross-entropy of the shapes [B, N, T, 4, h, w] of the last N rows of each clip in the last pass."""
        assert self.hidden is not None
        clips, rows, frames, _, height, width = shapes.shape
        hidden = self.hidden.unflatten(0, (clips, -1))[:, -rows:]
        hidden = hidden if self.teaches else hidden.detach()
        logits = self.read(hidden).view(clips, rows, frames, height // 2, width // 2, len(SHAPES), 2, 2)
        logits = logits.permute(0, 1, 2, 5, 3, 6, 4, 7).reshape(shapes.shape)
        return F.binary_cross_entropy_with_logits(logits, shapes)


class HiddenStates:
    """Compares the tokens after each layer with those of a teacher of the same size, in the same passes.

    As in TinyBERT (Jiao et al. 2020), without a map between the two: a student learns them many times faster than what
    the last layer predicts. If they are learned ``apart``, each layer of the student reads the teacher's tokens, so
    that no layer waits for those before it; training then has to end with passes of the student's own.
    """

    def __init__(self, transformer: WanTransformer3DModel, teacher: WanTransformer3DModel, *, apart: bool) -> None:
        self._own: list[Tensor] = []
        self._asked: list[Tensor] = []
        for kept, model in ((self._own, transformer), (self._asked, teacher)):
            for block in model.blocks:
                block.register_forward_hook(lambda module, inputs, output, kept=kept: kept.append(output))
        if apart:
            for number, block in enumerate(transformer.blocks[1:]):
                block.register_forward_pre_hook(lambda module, inputs, number=number: self._given(number, inputs))

    def _given(self, number: int, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._asked[number].detach(), *inputs[1:]

    def loss(self) -> Tensor:
        """Mean squared distance of the tokens of the last pass, in variances of each feature; forgets them."""
        distances = [
            ((own - asked).square() / asked.var(dim=(0, 1)).clamp_min(1e-4)).mean()
            for own, asked in zip(self._own, self._asked, strict=True)
        ]
        self._own.clear()
        self._asked.clear()
        return torch.stack(distances).mean()


def losses(
    network: Network, probe: ShapeProbe, batch: Batch, *, generator: torch.Generator, teacher: Teacher | None = None
) -> tuple[Tensor, Tensor]:
    """Mean squared error of the predicted flow, weighted towards objects, and the loss of the probe.

    The target is noise - clean, or what a ``teacher`` predicts, which varies less.
    """
    clips, rows = batch.latents.shape[:2]
    uniform = torch.rand(clips, rows - batch.clean, generator=generator)
    sigma = TRAIN_SHIFT * uniform / (1 + (TRAIN_SHIFT - 1) * uniform)  # [B, R - clean]
    blocks = batch.latents[:, batch.clean :]
    noise = torch.randn(blocks.shape, generator=generator)
    noisy = (1 - spread(sigma)) * blocks + spread(sigma) * noise
    # in a rollout the past is never perfectly clean, so neither is it in training
    past = batch.latents[:, : batch.clean]
    blemish = 0.08 * torch.rand(clips, 1, 1, 1, 1, 1, generator=generator)
    past = past + blemish * torch.randn(past.shape, generator=generator)
    target = noise - blocks if teacher is None else teacher.flow(batch, noisy, sigma, past=past)
    flow = network.flow(batch, noisy, sigma, past=past)
    shapes = batch.shapes[:, batch.clean :]
    near = (8 * shapes.sum(dim=3, keepdim=True)).clamp_max(1)  # objects and their outlines
    weight = 1 + 8 * near  # [B, R - clean, T, 1, h, w]
    return ((flow - target).square() * weight).mean() / weight.mean(), probe.loss(shapes)
