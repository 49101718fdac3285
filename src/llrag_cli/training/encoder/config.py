"""How a retrieval encoder is trained: frozen, strict, each field with its bounds and its meaning."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field

from llrag_cli.errors import UsageError, closest
from llrag_cli.files.settings import Config, apply_setting, parse_setting, read_yaml, setting_names, validate
from llrag_cli.presets import presets_folder


class EncoderTraining(Config):
    """Sizes, data, loss and optimiser; defaults are LongLive-RAG's. Latents tell their own channels and size."""

    latent_dim: int = Field(default=1024, gt=0, le=2**16, description="size of an embedding")
    hidden_dims: tuple[Annotated[int, Field(gt=0, le=2**13)], ...] = Field(
        default=(64, 128, 256), min_length=1, max_length=12, description="features of each stage"
    )
    chunk: int = Field(default=8, ge=1, le=10_000, description="latent frames of a training example, from one video")
    chunks_per_video: int = Field(default=1, ge=1, le=10_000, description="examples drawn from each video in an epoch")
    validation: float = Field(default=0.1, gt=0, lt=1, description="share of the videos held out; at least one is")
    batch: int = Field(default=128, ge=1, le=10**6, description="examples of an optimiser step, over all processes")
    epochs: int = Field(default=400, ge=1, le=10**6, description="passes over the videos")
    learning_rate: float = Field(default=3e-4, gt=0, description="of AdamW")
    weight_decay: float = Field(default=1e-4, ge=0, description="of AdamW")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    delta_margin: float = Field(default=0.85, ge=-1, le=1, description="cosine below which neighbours cost nothing")
    delta_weight: float = Field(default=1.0, ge=0, description="of the Window Temporal Delta Loss")
    delta_window: int = Field(default=3, ge=1, le=10_000, description="largest lag of the delta loss, in frames")
    smooth_weight: float = Field(default=1.0, ge=0, description="of trajectory smoothness")
    seed: int = Field(default=42, ge=0, lt=2**63, description="of the weights, the split and the examples")
    eval_every: int = Field(default=10, ge=1, le=10**6, description="epochs between evaluations of retrieval quality")


def load_training(preset: str | Path, *, settings: Iterable[str] = ()) -> EncoderTraining:
    """How to train an encoder: a bundled preset (``wan``, ``tiny``) or a YAML file, with settings applied."""
    path, names = Path(preset), setting_names(EncoderTraining)
    if path.suffix not in (".yaml", ".yml"):
        bundled = sorted(file.stem for file in (presets_folder() / "encoder").glob("*.yaml"))
        if str(preset) not in bundled:
            raise UsageError(f"unknown training preset `{preset}`", hint=closest(str(preset), bundled))
        path = presets_folder() / "encoder" / f"{preset}.yaml"
    content, lines = read_yaml(path)
    training = validate(EncoderTraining, content, source=f"`{path.name}`", lines=lines, names=names)
    parsed = [parse_setting(setting, names, example="epochs=100") for setting in settings]
    if not parsed:
        return training
    for name, value in parsed:
        apply_setting(content, name, value)
    return validate(EncoderTraining, content, source="settings", lines={}, names=names)
