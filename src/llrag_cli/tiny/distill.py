"""Distil the embedded backbone from many sampling steps to few.

The teacher writes videos on its own, block after block, each block along the many-step flow ODE with
classifier-free guidance. The student learns to jump from the points of a trajectory at the sampler's
few noise levels to its end (as in ODE initialisation, Yin et al. 2024, CausVid), in contexts that the
teacher made itself, with recall and without.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llrag_cli import console
from llrag_cli.backbones.wan import WanBackbone
from llrag_cli.config import RunConfig
from llrag_cli.memory.context import Context
from llrag_cli.memory.history import History, average_pool
from llrag_cli.rollout import attended, new_cache, recall
from llrag_cli.tiny.model import LATENT, load_backbone
from llrag_cli.tiny.optim import optimizers
from llrag_cli.tiny.teacher_forcing import TeacherForced, lay_out
from llrag_cli.tiny.text import TinyText, tokenize
from llrag_cli.tiny.world import caption, random_scene

FRAMES, BATCH = 24, 16


@torch.no_grad()
def collect_trajectories(
    teacher: Path, out: Path, configs: list[RunConfig], *, minutes: float, ode_steps: int, guidance: float, seed: int
) -> None:
    """Roll the teacher out for a time; write points [N, S, F, C, h, w], ends [N, F, C, h, w], prompts, recalls.

    ``configs`` share a sampler; batches take turns with their memories.
    """
    transformer, text = load_backbone(teacher)
    backbone = WanBackbone(transformer)
    sampler = configs[0].sampler
    levels = [1000 - step for step in sampler.steps]  # thousandths of the way from noise
    stops = [level * ode_steps // 1000 for level in levels]
    if any(level * ode_steps % 1000 for level in levels):
        raise ValueError(f"{ode_steps} ODE steps do not pass through the sampler's {sampler.steps}")
    way = torch.linspace(1, 0, ode_steps + 1)
    sigmas = sampler.shift * way / (1 + (sampler.shift - 1) * way)
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    points, ends, prompts, recalls = [], [], [], []
    started = time.monotonic()
    while time.monotonic() - started < 60 * minutes:
        memory = configs[len(points) % len(configs)].memory
        words = [caption(random_scene(rng), rng, keep=1.0 if rng.random() < 0.7 else 0.6) for _ in range(BATCH)]
        ids = text.pad([tokenize(each, limit=text.config.length)[0] for each in words])
        embeddings = text(torch.cat((ids, torch.zeros_like(ids))))  # with the prompt, and without any
        backbone.begin(embeddings, new_cache(memory, backbone, block=3))
        history = History(average_pool)
        trajectory, recalled_by_block = [], []
        for start in range(0, FRAMES, 3):
            recalled, _ = recall(history, memory, start=start)
            recalled_by_block.append(recalled)
            context = attended(memory, start=start, block=3, recalled=[*recalled, *recalled])
            backbone.attend(context, start=start, block=3, height=LATENT[1], width=LATENT[2])
            latents = torch.randn(BATCH, 3, *LATENT, generator=generator)
            stations = []
            for index in range(ode_steps):
                if index in stops:
                    stations.append(latents)
                flow = backbone.flow(torch.cat((latents, latents)), 1000 * sigmas[index])
                with_prompt, without = flow.chunk(2)
                guided = without + guidance * (with_prompt - without)
                latents = latents + (sigmas[index + 1] - sigmas[index]) * guided
            backbone.remember(torch.cat((latents, latents)))
            history.append(latents)
            trajectory.append(torch.stack(stations, dim=1))  # [B, S, 3, C, h, w]
        points.append(torch.cat(trajectory, dim=2).half())
        ends.append(history.latents.half())
        prompts.append(ids)
        recalls.append([[block[row] if block else [] for block in recalled_by_block] for row in range(BATCH)])
        console.note(f"{BATCH * len(points)} clips after {time.monotonic() - started:.0f} s")
    about = {
        "recalled": [row for batch in recalls for row in batch],
        "memory": [i % len(configs) for i in range(len(points)) for _ in range(BATCH)],
    }
    tensors = {"points": torch.cat(points), "ends": torch.cat(ends), "prompts": torch.cat(prompts)}
    save_file(tensors, out, metadata={"about": json.dumps(about)})


def distill(
    teacher: Path,
    trajectories: Path,
    out: Path,
    configs: list[RunConfig],
    *,
    minutes: float,
    batch: int = 6,
    seed: int = 0,
) -> None:
    """Train a copy of the teacher on its trajectories for a time; averaged weights go to ``out`` in half precision."""
    transformer, text = load_backbone(teacher)
    model = nn.ModuleDict({"transformer": transformer, "text": text}).requires_grad_(requires_grad=True)
    forced = TeacherForced(transformer)
    with safe_open(trajectories, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    tensors = load_file(trajectories)
    sampler = configs[0].sampler
    way = torch.tensor(sampler.steps) / 1000
    sigmas = sampler.shift * way / (1 + (sampler.shift - 1) * way)  # [S]
    optims = optimizers(model, matrix_lr=3e-3, other_lr=6e-4)
    groups = [(group, group["lr"]) for optim in optims for group in optim.param_groups]
    average = {name: value.clone() for name, value in model.state_dict().items()}
    generator, step, recent = torch.Generator().manual_seed(seed), 0, 0.0
    started = time.monotonic()
    order = torch.empty(0, dtype=torch.long)
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        if len(order) < batch:
            order = torch.randperm(len(tensors["ends"]), generator=generator)
        chosen, order = order[:batch], order[batch:]
        for group, rate in groups:
            group["lr"] = rate * min(1.0, (step + 1) / 20) * max(0.02, 1 - progress)
        contexts = [_contexts(configs[about["memory"][i]], about["recalled"][i]) for i in chosen.tolist()]
        loss = _jump_loss(forced, text, tensors, chosen, contexts, sigmas, generator=generator)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        step += 1
        for name, value in model.state_dict().items():
            average[name].lerp_(value, max(0.02, 1 / (step + 1)))
        recent = loss.item() if step == 1 else 0.95 * recent + 0.05 * loss.item()
        if step % 25 == 0:
            console.note(f"step {step} {100 * progress:.1f}% loss {recent:.4f}")
    save_file({name: value.half().contiguous() for name, value in average.items()}, out)
    console.note(f"done after {step} steps")


def _contexts(config: RunConfig, recalled: list[list[int]]) -> list[Context]:
    """What each block of a clip saw when the teacher wrote it."""
    return [
        attended(config.memory, start=3 * index, block=3, recalled=[frames] if frames else [])
        for index, frames in enumerate(recalled)
    ]


def _jump_loss(
    forced: TeacherForced,
    text: TinyText,
    tensors: dict[str, Tensor],
    chosen: Tensor,
    contexts: list[list[Context]],
    sigmas: Tensor,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Distance between where the student says a trajectory ends and where it ended, mean over noise levels."""
    ends, points = tensors["ends"][chosen].float(), tensors["points"][chosen].float()
    clips, levels, frames = points.shape[:3]
    blemish = 0.1 * torch.rand(clips, 1, 1, 1, 1, generator=generator)
    remembered = ends + blemish * torch.randn(ends.shape, generator=generator)
    streams = torch.cat((remembered[:, None], points), dim=1)
    times = torch.cat((torch.zeros(1), 1000 * sigmas)).view(1, -1, 1).expand(clips, levels + 1, frames // 3)
    flow = forced(streams, times, text(tensors["prompts"][chosen]), lay_out(contexts, block=3))[:, 1:]
    spread = sigmas.view(1, -1, 1, 1, 1, 1)
    error = points - spread * flow - ends[:, None]
    return (error.square() + 1e-3).sqrt().mean()  # pseudo-Huber: sharper than squares
