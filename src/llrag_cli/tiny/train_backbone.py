"""Train the embedded backbone by teacher forcing on latent clips."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llrag_cli import console
from llrag_cli.tiny.dataset import LatentClips
from llrag_cli.tiny.model import new_transformer
from llrag_cli.tiny.optim import optimizers
from llrag_cli.tiny.teacher_forcing import TeacherForced, lay_out, random_contexts
from llrag_cli.tiny.text import TinyText, tokenize
from llrag_cli.tiny.world import Scene, caption

BLOCK, WINDOW, SINK, RETRIEVED = 3, 12, 1, 4  # as in presets/tiny.yaml
NOISY_STREAMS = 2
TRAIN_SHIFT = 3.0  # sigmas are drawn uniformly, then shifted towards noise


def train_backbone(
    clips: LatentClips, out: Path, *, minutes: float, batch: int = 8, seed: int = 0, resume: Path | None = None
) -> None:
    """Train transformer and text encoder together for a time; averaged weights go to ``out``."""
    model = nn.ModuleDict({"transformer": new_transformer(seed=seed), "text": TinyText()})
    if resume is not None:
        model.load_state_dict(load_file(resume))  # half precision is widened
    forced = TeacherForced(model["transformer"])
    optims = optimizers(model, matrix_lr=1e-2, other_lr=2e-3)
    groups = [(group, group["lr"]) for optim in optims for group in optim.param_groups]
    average = {name: value.clone() for name, value in model.state_dict().items()}
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    started = saved = time.monotonic()
    step, order, recent = 0, torch.empty(0, dtype=torch.long), {True: 0.0, False: 0.0}
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        opening = step % 2 == 0  # every other step: many opening blocks, where the prompt is all there is to go by
        size = batch * clips.latents.shape[1] // BLOCK if opening else batch
        if len(order) < size:
            order = torch.randperm(len(clips.latents), generator=generator)
        chosen, order = order[:size], order[size:]
        factor = min(1.0, (step + 1) / 50) * (1.0 if progress < 0.4 else max(0.02, (1 - progress) / 0.6))
        for group, rate in groups:
            group["lr"] = rate * factor
        prompts = prompt_ids(model["text"], [clips.scenes[i] for i in chosen.tolist()], rng)  # type: ignore[arg-type]
        frames = BLOCK if opening else clips.latents.shape[1]
        loss = flow_loss(forced, model["text"](prompts), clips, chosen, frames=frames, rng=rng, generator=generator)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        step += 1
        for name, value in model.state_dict().items():
            average[name].lerp_(value, max(0.004, 1 / (step + 1)))
        recent[opening] += 0.05 * (loss.item() - recent[opening]) if step > 2 else loss.item()
        if step % 25 == 0:
            shown = f"loss {recent[False]:.4f}, of opening blocks {recent[True]:.4f}"
            console.note(f"step {step} {100 * progress:.1f}% {shown}")
        if time.monotonic() - saved > 180:
            saved = time.monotonic()
            _save(average, out)
    _save(average, out)
    console.note(f"done after {step} steps")


def _save(average: dict[str, Tensor], out: Path) -> None:
    """Write averaged weights in half precision."""
    save_file({name: value.half().contiguous() for name, value in average.items()}, out)


def prompt_ids(text: TinyText, scenes: list[Scene], rng: random.Random) -> Tensor:
    """Captions as ids [B, length]: mostly full, often partial, now and then none at all."""
    captions = []
    for scene in scenes:
        kind = rng.random()
        captions.append("" if kind < 0.1 else caption(scene, rng, keep=1.0 if kind < 0.65 else 0.6))
    return text.pad([tokenize(words, limit=text.config.length)[0] for words in captions])


def flow_loss(
    forced: TeacherForced,
    prompt: Tensor,
    clips: LatentClips,
    chosen: Tensor,
    *,
    frames: int,
    rng: random.Random,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error of the predicted flow (noise - clean) over the first frames, objects weighing more."""
    clean = clips.latents[chosen, :frames].float()  # [B, F, C, h, w]
    batch = len(clean)
    blocks = frames // BLOCK
    contexts = [
        random_contexts(rng, blocks=blocks, block=BLOCK, window=WINDOW, sink=SINK, retrieved=RETRIEVED)
        for _ in range(batch)
    ]
    uniform = torch.rand(batch, NOISY_STREAMS, blocks, generator=generator)
    sigma = TRAIN_SHIFT * uniform / (1 + (TRAIN_SHIFT - 1) * uniform)  # [B, S, n]
    noise = torch.randn(batch, NOISY_STREAMS, *clean.shape[1:], generator=generator)
    spread = sigma.repeat_interleave(BLOCK, dim=2)[..., None, None, None]  # [B, S, F, 1, 1, 1]
    noisy = (1 - spread) * clean[:, None] + spread * noise
    # what a rollout remembers is never quite clean, so neither is what it learns from
    blemish = 0.08 * torch.rand(batch, 1, 1, 1, 1, generator=generator)
    remembered = clean + blemish * torch.randn(clean.shape, generator=generator)
    streams = torch.cat((remembered[:, None], noisy), dim=1)  # [B, 1+S, F, C, h, w]
    timesteps = torch.cat((torch.zeros(batch, 1, blocks), 1000 * sigma), dim=1)
    flow = forced(streams, timesteps, prompt, lay_out(contexts, block=BLOCK))[:, 1:]
    weight = 1 + 8 * (clips.cover[chosen, :frames].float() / 255)[:, None]  # [B, 1, F, 1, h, w]
    return ((flow - (noise - clean[:, None])).square() * weight).mean() / weight.mean()
