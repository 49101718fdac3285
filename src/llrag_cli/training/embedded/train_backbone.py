"""Train the embedded backbone by teacher forcing on latent clips."""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llrag_cli.memory.history import average_pool
from llrag_cli.models.embedded.model import new_transformer
from llrag_cli.models.embedded.text import TinyText
from llrag_cli.models.embedded.vocabulary import tokenize
from llrag_cli.training.embedded.dataset import LatentClips
from llrag_cli.training.embedded.optim import optimizers
from llrag_cli.training.embedded.scene_clips import SceneClips, return_caption, switch_captions
from llrag_cli.training.embedded.scene_contexts import NO_PROMPT, SceneRow, cut_rows, memory_of, switch_rows
from llrag_cli.training.embedded.teacher_forcing import Layout, Row, TeacherForced, lay_out, random_contexts, row_of
from llrag_cli.world.sprites import SHAPES, Scene, caption

logger = logging.getLogger(__name__)

BLOCK, WINDOW, SINK, RETRIEVED, GUARD = 3, 12, 1, 4, 2  # as in presets/tiny.yaml
NOISY_STREAMS = 2
SWITCH_COPIES = (4, 2, 1, 1)  # noisy copies of the blocks after a switch: its first blocks show what was learned
CUT_COPIES = ((1, 1, 0), (4, 2, 1, 1))  # of the second and the third shot
SCENE_ROWS = 18  # about, of a clip
TURNS = ("opening", "clip")  # what the steps train on, in turns
TURNS_WITH_SCENES = ("opening", "clip", "opening", "scenes", "clip")
PROBED_LAYER = 4  # of eight; the shapes are predicted from its tokens
PROBE_WEIGHT = 1.0
OUTPUTS = ("attn1.to_out", "attn2.to_out", "ffn.net.2")  # of the residual branches of a layer
TRAIN_SHIFT = 3.0  # sigmas are drawn uniformly, then shifted towards noise


@dataclass(frozen=True)
class Batch:
    """Rows of clips, ready to be trained on; clean latents and coverage by shape are [B, R, T, ...].

    The first ``clean`` rows of a clip are its memory, the others are denoised. ``prompts`` are ids [B, P, length] and
    ``prompt_of`` [B, R] says whose prompt a row follows; None: the only one.
    """

    latents: Tensor
    shapes: Tensor
    prompts: Tensor
    layout: Layout
    clean: int
    prompt_of: Tensor | None = None


def opening_batch(data: LatentClips, chosen: Tensor, text: TinyText, rng: random.Random) -> Batch:
    """Blocks that open a video: without a past, the prompt is the only information."""
    prompts = prompt_ids(text, [data.scenes[i] for i in chosen.tolist()], rng)
    layout = lay_out([[Row((), (), 0)]] * len(chosen), block=BLOCK)
    latents, shapes = data.latents[chosen].float(), data.shapes[chosen].float() / 255
    return Batch(latents[:, None], shapes[:, None], prompts[:, None], layout, clean=0)


def clip_batch(data: LatentClips, chosen: Tensor, text: TinyText, rng: random.Random) -> Batch:
    """Whole clips under one prompt, each by one memory strategy; every block is denoised in ``NOISY_STREAMS`` rows."""
    prompts = prompt_ids(text, [data.scenes[i] for i in chosen.tolist()], rng)
    latents = data.latents[chosen].float()
    keys = F.normalize(average_pool(latents.flatten(0, 1)), dim=-1).unflatten(0, latents.shape[:2])
    retrieved = rng.choice((RETRIEVED, RETRIEVED, 6))
    clips = [
        [row_of(context) for context in contexts] * (1 + NOISY_STREAMS)
        for contexts in (
            random_contexts(rng, key, block=BLOCK, window=WINDOW, sink=SINK, retrieved=retrieved, guard=GUARD)
            for key in keys
        )
    ]
    blocks = latents.shape[1] // BLOCK
    shapes = data.shapes[chosen].float() / 255
    return Batch(
        latents.unflatten(1, (blocks, BLOCK)).repeat(1, 1 + NOISY_STREAMS, *(1,) * 4),
        shapes.unflatten(1, (blocks, BLOCK)).repeat(1, 1 + NOISY_STREAMS, *(1,) * 4),
        prompts[:, None],
        lay_out(clips, block=BLOCK),
        clean=blocks,
    )


def scene_batch(data: SceneClips, chosen: Tensor, text: TinyText, rng: random.Random) -> Batch:
    """Clips with a switch or with cuts; the blocks after them are denoised."""
    latents, shapes = data.latents[chosen].float(), data.shapes[chosen].float() / 255
    keys = F.normalize(average_pool(latents.flatten(0, 1)), dim=-1).unflatten(0, latents.shape[:2])
    memory = memory_of(retrieved=rng.choice((0, RETRIEVED, RETRIEVED, 6)))
    clips: list[tuple[list[SceneRow], list[SceneRow]]] = []
    texts: list[tuple[str, ...]] = []
    for number, key in zip(chosen.tolist(), keys, strict=True):
        scenes, change = data.scenes[number], data.changes[number]
        if data.kind == "switch":
            texts.append((*switch_captions(scenes[0], scenes[1], change, rng), ""))
            rows = switch_rows(rng, key, shots=data.shots, block=BLOCK, memory=memory, copies=SWITCH_COPIES)
        else:
            first, other = (caption(scene, rng, keep=rng.choice((1.0, 1.0, 0.6))) for scene in scenes[:2])
            texts.append((first, other, return_caption(scenes[2], change, rng), ""))
            rows = cut_rows(rng, key, shots=data.shots, block=BLOCK, memory=memory, change=change, copies=CUT_COPIES)
        clips.append((rows.clean, rows.noisy))
    starts = torch.tensor([[row.start for row in (*clean, *noisy)] for clean, noisy in clips])  # [B, R]
    frames = starts[..., None] + torch.arange(BLOCK)  # [B, R, T]
    which = torch.arange(len(chosen))[:, None, None]
    count = len(texts[0])
    prompt_of = torch.tensor([[row.prompt % count for row in (*clean, *noisy)] for clean, noisy in clips])
    assert NO_PROMPT % count == count - 1  # the last text is the empty one
    ids = torch.stack([text.pad([tokenize(line, limit=text.config.length)[0] for line in lines]) for lines in texts])
    layout = lay_out([[row.row for row in (*clean, *noisy)] for clean, noisy in clips], block=BLOCK)
    return Batch(latents[which, frames], shapes[which, frames], ids, layout, len(clips[0][0]), prompt_of)


class Deck:
    """Numbers below a count, in random order, each once before any comes again."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator
        self._left = torch.empty(0, dtype=torch.long)

    def draw(self, size: int) -> Tensor:
        """The next ``size`` numbers."""
        if len(self._left) < size:
            self._left = torch.randperm(self.count, generator=self.generator)
        drawn, self._left = self._left[:size], self._left[size:]
        return drawn


class Lessons:
    """What each step trains on."""

    def __init__(
        self,
        clips: LatentClips,
        openings: LatentClips,
        scenes: Sequence[SceneClips],
        *,
        batch: int,
        generator: torch.Generator,
    ) -> None:
        self.clips, self.openings, self.scenes, self.batch = clips, openings, scenes, batch
        self._rows = batch * (1 + NOISY_STREAMS) * clips.latents.shape[1] // BLOCK  # of a step
        every: list[LatentClips | SceneClips] = [clips, openings, *scenes]
        self._decks = {id(data): Deck(len(data.latents), generator) for data in every}

    def draw(self, step: int, text: TinyText, rng: random.Random) -> tuple[str, Batch]:
        """The batch of a step, and what it is called."""
        turns = TURNS_WITH_SCENES if self.scenes else TURNS
        turn = turns[step % len(turns)]
        if turn == "scenes":
            scenes = self.scenes[step // len(turns) % len(self.scenes)]
            chosen = self._chosen(scenes, max(1, self._rows // SCENE_ROWS))
            return scenes.kind, scene_batch(scenes, chosen, text, rng)
        if turn == "opening":
            return turn, opening_batch(self.openings, self._chosen(self.openings, self._rows), text, rng)
        return turn, clip_batch(self.clips, self._chosen(self.clips, self.batch), text, rng)

    def _chosen(self, data: LatentClips | SceneClips, size: int) -> Tensor:
        return self._decks[id(data)].draw(size)


def train_backbone(
    clips: LatentClips,
    openings: LatentClips,
    out: Path,
    *,
    scenes: Sequence[SceneClips] = (),
    steps: int,
    batch: int = 4,
    seed: int = 0,
    resume: Path | None = None,
    matrix_lr: float = 1e-2,
    other_lr: float = 2e-3,
    flat: float = 0.4,
    minutes: float | None = None,
) -> None:
    """Train transformer and text encoder together; averaged weights are written to ``out``.

    Steps take turns (``TURNS``) between ``batch`` whole clips and as many tokens of opening blocks alone, where the
    prompt is the only information; with ``scenes`` also clips with a switch or with cuts. Learning rates
    are constant for the share ``flat`` of the steps, and then fall linearly. Training ends after ``minutes``, if they
    are over before the steps are; the learning rates fall accordingly.
    """
    transformer, text = new_transformer(seed=seed), TinyText()
    model = nn.ModuleDict({"transformer": transformer, "text": text})
    if resume is not None:
        model.load_state_dict(grown(load_file(resume), model))
    forced = TeacherForced(transformer)
    probe = ShapeProbe(transformer)
    optims = optimizers(nn.ModuleDict({**model, "probe": probe.read}), matrix_lr=matrix_lr, other_lr=other_lr)
    groups = [(group, group["lr"]) for optim in optims for group in optim.param_groups]
    average = {name: value.clone() for name, value in model.state_dict().items()}
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    began = saved = time.monotonic()
    lessons = Lessons(clips, openings, scenes, batch=batch, generator=generator)
    recent: dict[str, tuple[float, float]] = {}
    for step in range(steps):
        passed = (time.monotonic() - began) / (60 * minutes) if minutes else 0.0
        if passed >= 1:
            break
        progress = max(step / steps, passed)
        factor = min(1.0, (step + 1) / 50) * (1.0 if progress < flat else max(0.02, (1 - progress) / (1 - flat)))
        for group, rate in groups:
            group["lr"] = rate * factor
        kind, drawn = lessons.draw(step, text, rng)
        probe.teaches = resume is None or step >= 100
        loss, shape_loss = losses(forced, probe, text, drawn, generator=generator)
        torch.autograd.backward(loss + PROBE_WEIGHT * shape_loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        for name, value in model.state_dict().items():
            average[name].lerp_(value, max(0.004, 1 / (step + 2)))
        flow, shown = recent.get(kind, (loss.item(), shape_loss.item()))
        recent[kind] = flow + 0.05 * (loss.item() - flow), shown + 0.05 * (shape_loss.item() - shown)
        if (step + 1) % 50 == 0:
            report = ", ".join(f"{name} {flow:.4f} (shapes {shown:.4f})" for name, (flow, shown) in recent.items())
            logger.info("step %d of %d: %s", step + 1, steps, report)
        if time.monotonic() - saved > 180:
            saved = time.monotonic()
            _save(average, out)
    _save(average, out)


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


def losses(
    forced: TeacherForced, probe: ShapeProbe, text: TinyText, batch: Batch, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean squared error of the predicted flow (noise - clean), weighted towards objects, and the loss of the probe."""
    clips, rows = batch.latents.shape[:2]
    uniform = torch.rand(clips, rows - batch.clean, generator=generator)
    sigma = TRAIN_SHIFT * uniform / (1 + (TRAIN_SHIFT - 1) * uniform)  # [B, R - clean]
    target = batch.latents[:, batch.clean :]
    noise = torch.randn(target.shape, generator=generator)
    spread = sigma[..., None, None, None, None]
    noisy = (1 - spread) * target + spread * noise
    # in a rollout the past is never perfectly clean, so neither is it in training
    past = batch.latents[:, : batch.clean]
    blemish = 0.08 * torch.rand(clips, 1, 1, 1, 1, 1, generator=generator)
    past = past + blemish * torch.randn(past.shape, generator=generator)
    timesteps = torch.cat((torch.zeros(clips, batch.clean), 1000 * sigma), dim=1)
    prompts = text(batch.prompts.flatten(0, 1))
    if batch.prompt_of is not None:
        prompts = prompts.unflatten(0, batch.prompts.shape[:2])
    flow = forced(
        torch.cat((past, noisy), dim=1),
        timesteps,
        prompts,
        batch.layout,
        clean=batch.clean,
        prompt_of=batch.prompt_of,
    )[:, batch.clean :]
    shapes = batch.shapes[:, batch.clean :]
    near = (8 * shapes.sum(dim=3, keepdim=True)).clamp_max(1)  # objects and their outlines
    weight = 1 + 8 * near  # [B, R - clean, T, 1, h, w]
    return ((flow - (noise - target)).square() * weight).mean() / weight.mean(), probe.loss(shapes)
