"""``llrag train-encoder``: latents become the encoder that frames are recalled by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from llrag_cli.cli import console
from llrag_cli.errors import UsageError, closest
from llrag_cli.formatting import counted
from llrag_cli.presets import load_training


@dataclass(frozen=True)
class TrainEncoderRequest:
    """What was asked for on the command line."""

    latents: Path
    out: Path
    preset: str | None
    epochs: int | None
    settings: tuple[str, ...]
    resume: bool
    force: bool
    precision: str
    track: str | None
    device: str
    as_json: bool


def run(request: TrainEncoderRequest) -> None:
    """Train, and say how it goes."""
    if os.environ.get("RANK", "0") != "0":
        console.silence()  # of several processes, the first one speaks
    settings = list(request.settings)
    if request.epochs is not None:
        settings.append(f"epochs={request.epochs}")
    load_training(request.preset or "wan", settings=settings)  # a typo is reported here, before torch loads
    if request.out.suffix != ".safetensors":
        raise UsageError(f"`{request.out}` is no name for an encoder", hint="`--out` ends in .safetensors")
    with console.working("loading"):
        from llrag_cli.engine.devices import find_device
        from llrag_cli.runs.latents import LatentFolder
        from llrag_cli.training.encoder.data import LatentPool, size
        from llrag_cli.training.encoder.trainer import EncoderTrainer, Precision, Tracker, TrainingFolder

        if request.precision not in get_args(Precision):
            raise UsageError(
                f"there is no precision `{request.precision}`", hint=closest(request.precision, get_args(Precision))
            )
        if request.track is not None and request.track not in get_args(Tracker):
            raise UsageError(f"there is no tracker `{request.track}`", hint=closest(request.track, get_args(Tracker)))
        find_device(request.device)
    with console.counting("reading latents", total=len(LatentFolder(request.latents).files())) as advance:
        pool = LatentPool(request.latents, on_file=lambda: advance(1))
    preset = request.preset or ("tiny" if max(pool.shape[1:]) <= 16 else "wan")
    training = load_training(preset, settings=settings)
    folder = TrainingFolder(request.out)
    folder.create(resume=request.resume, force=request.force)
    trainer = EncoderTrainer(
        pool,
        training,
        folder,
        device=request.device,
        precision=request.precision,  # type: ignore[arg-type]
        tracker=request.track,  # type: ignore[arg-type]
        resume=request.resume,
    )
    short = sum(length < training.chunk for length in pool.lengths)
    if short:
        console.warn(
            f"{counted(short, 'video')} shorter than a chunk of {training.chunk} frames: their last frame is repeated"
        )
    console.note(
        f"{counted(len(trainer.learnt), 'video')} to learn from, {len(trainer.held_out)} held out, latents of "
        f"{size(pool.shape)} to {training.latent_dim}, preset `{preset}`; into {request.out} and {folder.path}/"
    )
    if trainer.epochs_done:
        console.note(f"going on after epoch {trainer.epochs_done}")
    todo = max(0, training.epochs - trainer.epochs_done)
    try:
        with console.counting("training", total=todo) as advance:

            def told(record: Mapping[str, Any]) -> None:
                advance(1, _said(record))

            records = trainer.run(told)
    except KeyboardInterrupt:
        console.note(f"{counted(trainer.epochs_done, 'epoch')} done; `--resume` goes on")
        raise
    best = records[trainer.best_epoch - 1]
    console.note(
        f"best in epoch {best['epoch']}: validation {best['validation']['total']:.4f}; curves in {folder.curves}, "
        f"summary in {folder.summary}"
    )
    if request.as_json:
        console.result_json({"encoder": str(request.out), "folder": str(folder.path), **best})
    else:
        console.result(str(request.out))


def _said(record: Mapping[str, Any]) -> str:
    loss = record["validation"]
    return f"loss {loss['total']:.4f} (delta {loss['delta']:.4f})"
