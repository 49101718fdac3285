"""Train the embedded model from nothing, stage by stage: ``python -m llrag_cli.tiny.train STAGE --out DIR``.

The stages are vae, clips, backbone, trajectories and distill, in this order; each reads what earlier
ones wrote into the folder. ``vae.safetensors`` and ``backbone.safetensors`` are what the package ships.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from llrag_cli.config import RunConfig
from llrag_cli.presets import METHODS, load_config

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)

Out = Annotated[Path, typer.Option(help="Folder of this training")]
Minutes = Annotated[float, typer.Option(min=0.01, help="How long to train")]
Seed = Annotated[int, typer.Option(help="Seed of data and weights")]


@app.callback()
def setup(threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 2) -> None:
    """Shared by all stages."""
    torch.set_num_threads(threads)


@app.command()
def vae(out: Out, minutes: Minutes = 18.0, seed: Seed = 0) -> None:
    """Train the VAE."""
    from llrag_cli.tiny.train_vae import train_vae

    out.mkdir(parents=True, exist_ok=True)
    train_vae(out / "vae.safetensors", minutes=minutes, seed=seed)


@app.command()
def clips(out: Out, count: Annotated[int, typer.Option(min=8)] = 3000, seed: Seed = 0) -> None:
    """Render and encode the clips that the backbone learns from."""
    from llrag_cli.tiny.dataset import make_clips, save_clips
    from llrag_cli.tiny.model import load_vae

    made = make_clips(load_vae(out / "vae.safetensors"), count=count, frames=24, seed=seed)
    save_clips(made, out / "clips.safetensors")


@app.command()
def backbone(
    out: Out,
    minutes: Minutes = 60.0,
    batch: Annotated[int, typer.Option(min=1, help="Clips a step")] = 6,
    seed: Seed = 0,
    resume: Annotated[Path | None, typer.Option(help="Start from these weights")] = None,
) -> None:
    """Train transformer and text encoder by teacher forcing."""
    from llrag_cli.tiny.dataset import load_clips
    from llrag_cli.tiny.train_backbone import train_backbone

    clips = load_clips(out / "clips.safetensors")
    train_backbone(clips, out / "teacher.safetensors", minutes=minutes, batch=batch, seed=seed, resume=resume)


@app.command()
def trajectories(
    out: Out,
    minutes: Minutes = 8.0,
    guidance: Annotated[float, typer.Option(help="Of the prompt; 1 is none")] = 2.0,
    ode_steps: Annotated[int, typer.Option(help="Sampling steps of the teacher")] = 16,
    seed: Seed = 1,
) -> None:
    """Let the trained backbone write videos in many steps, for the student to learn from."""
    from llrag_cli.tiny.distill import collect_trajectories

    collect_trajectories(
        out / "teacher.safetensors",
        out / "trajectories.safetensors",
        _configs(),
        minutes=minutes,
        ode_steps=ode_steps,
        guidance=guidance,
        seed=seed,
    )


@app.command()
def distill(out: Out, minutes: Minutes = 12.0, seed: Seed = 0) -> None:
    """Teach the backbone to sample in the few steps of its preset."""
    from llrag_cli.tiny import distill as distillation

    distillation.distill(
        out / "teacher.safetensors",
        out / "trajectories.safetensors",
        out / "backbone.safetensors",
        _configs(),
        minutes=minutes,
        seed=seed,
    )


def _configs() -> list[RunConfig]:
    return [load_config("tiny", method=method) for method in METHODS]


if __name__ == "__main__":
    app()
