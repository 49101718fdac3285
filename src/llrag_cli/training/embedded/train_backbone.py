"""Train the embedded backbone by teacher forcing on latent clips."""

from __future__ import annotations

import logging
import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llrag_cli.memory.history import average_pool
from llrag_cli.models.embedded.model import new_transformer
from llrag_cli.models.embedded.text import TinyText, tokenize
from llrag_cli.training.embedded.dataset import LatentClips
from llrag_cli.training.embedded.optim import optimizers
from llrag_cli.training.embedded.teacher_forcing import TeacherForced, lay_out, random_contexts
from llrag_cli.world.sprites import SHAPES, Scene, caption

logger = logging.getLogger(__name__)

BLOCK, WINDOW, SINK, RETRIEVED, GUARD = 3, 12, 1, 4, 2  # as in presets/tiny.yaml
NOISY_STREAMS = 2
PROBED_LAYER = 3  # of six; the shapes are predicted from its tokens
PROBE_WEIGHT = 1.0
TRAIN_SHIFT = 3.0  # sigmas are drawn uniformly, then shifted towards noise


def train_backbone(
    clips: LatentClips,
    openings: LatentClips,
    out: Path,
    *,
    steps: int,
    batch: int = 4,
    seed: int = 0,
    resume: Path | None = None,
) -> None:
    """Train transformer and text encoder together; averaged weights are written to ``out``.

    Steps alternate between ``batch`` whole clips and as many tokens of opening blocks alone, where the prompt is
    the only information.
    """
    model = nn.ModuleDict({"transformer": new_transformer(seed=seed), "text": TinyText()})
    if resume is not None:
        model.load_state_dict(load_file(resume))  # from half precision to float32
    forced = TeacherForced(model["transformer"])
    probe = ShapeProbe(model["transformer"])
    optims = optimizers(nn.ModuleDict({**model, "probe": probe.read}), matrix_lr=1e-2, other_lr=2e-3)
    groups = [(group, group["lr"]) for optim in optims for group in optim.param_groups]
    average = {name: value.clone() for name, value in model.state_dict().items()}
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    saved = time.monotonic()
    orders = {True: torch.empty(0, dtype=torch.long), False: torch.empty(0, dtype=torch.long)}
    recent = {True: (0.0, 0.0), False: (0.0, 0.0)}
    for step in range(steps):
        progress = step / steps
        opening = step % 2 == 0
        data = openings if opening else clips
        size = batch * (1 + NOISY_STREAMS) * clips.latents.shape[1] // BLOCK if opening else batch
        if len(orders[opening]) < size:
            orders[opening] = torch.randperm(len(data.latents), generator=generator)
        chosen, orders[opening] = orders[opening][:size], orders[opening][size:]
        factor = min(1.0, (step + 1) / 50) * (1.0 if progress < 0.4 else max(0.02, (1 - progress) / 0.6))
        for group, rate in groups:
            group["lr"] = rate * factor
        prompts = prompt_ids(model["text"], [data.scenes[i] for i in chosen.tolist()], rng)  # type: ignore[arg-type]
        shapes = data.shapes[chosen].float() / 255
        loss = flow_loss(
            forced, model["text"](prompts), data.latents[chosen].float(), shapes, rng=rng, generator=generator
        )
        shape_loss = probe.loss(shapes, streams=1 if opening else 1 + NOISY_STREAMS)
        torch.autograd.backward(loss + PROBE_WEIGHT * shape_loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        for name, value in model.state_dict().items():
            average[name].lerp_(value, max(0.004, 1 / (step + 2)))
        pace = 0.05 if step > 1 else 1.0
        flow, shown = recent[opening]
        recent[opening] = flow + pace * (loss.item() - flow), shown + pace * (shape_loss.item() - shown)
        if (step + 1) % 50 == 0:
            losses = ", ".join(
                f"{name} {recent[kind][0]:.4f} (shapes {recent[kind][1]:.4f})"
                for kind, name in ((False, "loss"), (True, "of opening blocks"))
            )
            logger.info("step %d of %d: %s", step + 1, steps, losses)
        if time.monotonic() - saved > 180:
            saved = time.monotonic()
            _save(average, out)
    _save(average, out)


def _save(average: dict[str, Tensor], out: Path) -> None:
    """Write averaged weights in half precision."""
    save_file({name: value.half().contiguous() for name, value in average.items()}, out)


def prompt_ids(text: TinyText, scenes: list[Scene], rng: random.Random) -> Tensor:
    """Captions as ids [B, length]: mostly full, often partial, sometimes empty."""
    captions = []
    for scene in scenes:
        kind = rng.random()
        captions.append("" if kind < 0.1 else caption(scene, rng, keep=1.0 if kind < 0.65 else 0.6))
    return text.pad([tokenize(words, limit=text.config.length)[0] for words in captions])


class ShapeProbe:
    """Predicts shapes from the tokens of a middle layer, which speeds up learning; not part of the released weights.

    REPA (Yu et al. 2024) does this with features of another network, here the target is the renderer's ground truth.
    """

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        config = transformer.config
        self.read = nn.Linear(config.num_attention_heads * config.attention_head_dim, len(SHAPES) * 4)
        self.hidden: Tensor | None = None
        transformer.blocks[PROBED_LAYER].register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.hidden = output

    def loss(self, shapes: Tensor, *, streams: int) -> Tensor:
        """Cross-entropy of shapes [B, F, 4, h, w] read from the last pass; the first of several streams is clean."""
        assert self.hidden is not None
        clips, frames, _, height, width = shapes.shape
        logits = self.read(self.hidden).view(clips, streams, frames, height // 2, width // 2, len(SHAPES), 2, 2)
        logits = logits.permute(0, 1, 2, 5, 3, 6, 4, 7).reshape(clips, streams, *shapes.shape[1:])
        logits = logits[:, 1:] if streams > 1 else logits
        return F.binary_cross_entropy_with_logits(logits, shapes[:, None].expand_as(logits))


def flow_loss(
    forced: TeacherForced,
    prompt: Tensor,
    clean: Tensor,
    shapes: Tensor,
    *,
    rng: random.Random,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the predicted flow (noise - clean) of clips [B, F, C, h, w], weighted towards objects."""
    batch, frames = clean.shape[:2]
    blocks = frames // BLOCK
    noisy_streams = NOISY_STREAMS if blocks > 1 else 1  # a single block has no past: one noisy stream
    keys = F.normalize(average_pool(clean.flatten(0, 1)), dim=-1).unflatten(0, clean.shape[:2])
    contexts = [
        random_contexts(rng, key, block=BLOCK, window=WINDOW, sink=SINK, retrieved=RETRIEVED, guard=GUARD)
        for key in keys
    ]
    uniform = torch.rand(batch, noisy_streams, blocks, generator=generator)
    sigma = TRAIN_SHIFT * uniform / (1 + (TRAIN_SHIFT - 1) * uniform)  # [B, S, n]
    noise = torch.randn(batch, noisy_streams, *clean.shape[1:], generator=generator)
    spread = sigma.repeat_interleave(BLOCK, dim=2)[..., None, None, None]  # [B, S, F, 1, 1, 1]
    streams = (1 - spread) * clean[:, None] + spread * noise
    timesteps = 1000 * sigma
    if blocks > 1:
        # in a rollout the past is never perfectly clean, so neither is it in training
        blemish = 0.08 * torch.rand(batch, 1, 1, 1, 1, generator=generator)
        remembered = clean + blemish * torch.randn(clean.shape, generator=generator)
        streams = torch.cat((remembered[:, None], streams), dim=1)  # [B, 1+S, F, C, h, w]
        timesteps = torch.cat((torch.zeros(batch, 1, blocks), timesteps), dim=1)
    flow = forced(streams, timesteps, prompt, lay_out(contexts, block=BLOCK))[:, -noisy_streams:]
    near = (8 * shapes.sum(dim=2, keepdim=True)).clamp_max(1)  # objects and their outlines
    weight = 1 + 8 * near[:, None]  # [B, 1, F, 1, h, w]
    return ((flow - (noise - clean[:, None])).square() * weight).mean() / weight.mean()
