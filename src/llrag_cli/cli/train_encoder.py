"""``llrag train-encoder``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from llrag_cli.cli.options import Json, Set
from llrag_cli.errors import NoLatentsError, UsageError, closest

PRECISIONS = ("auto", "no", "bf16", "fp16")
TRACKERS = ("tensorboard", "wandb")


def train_encoder(
    latents: Annotated[
        Path, typer.Option(help="Folder written by `llrag collect`, or with the original's latent_*.pt files")
    ],
    out: Annotated[
        Path, typer.Option(help="File for the best encoder, .safetensors; all else goes to a folder beside it")
    ],
    preset: Annotated[
        str | None, typer.Option(help="wan, tiny or a YAML file; default: by the size of the latents")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the videos; default: the preset's")] = None,
    settings: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted training")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier training")] = False,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16; auto is bf16 on a GPU that supports it")] = "auto",
    track: Annotated[str | None, typer.Option(help="Also report to tensorboard or wandb")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto is the GPU if there is one")] = "auto",
    as_json: Json = False,
) -> None:
    """Train the retrieval encoder: reconstruction, Window Temporal Delta Loss and smoothness.

    With several GPUs: `accelerate launch -m llrag_cli train-encoder ...`.
    """
    import os

    from llrag_cli.cli import console
    from llrag_cli.formatting import counted
    from llrag_cli.runs.folder import RunFolder
    from llrag_cli.training.encoder.config import load_training
    from llrag_cli.training.encoder.folder import TrainingFolder

    if os.environ.get("RANK", "0") != "0":
        console.silence()  # of several processes, only the first one prints
    changes = [*(settings or ()), *([] if epochs is None else [f"epochs={epochs}"])]
    load_training(preset or "wan", settings=changes)  # a wrong name is an error before torch is imported
    if out.suffix != ".safetensors":
        raise UsageError(f"`{out}` is not a name for an encoder", hint="`--out` ends in .safetensors")
    if precision not in PRECISIONS:
        raise UsageError(f"unknown precision `{precision}`", hint=closest(precision, PRECISIONS))
    if track is not None and track not in TRACKERS:
        raise UsageError(f"unknown tracker `{track}`", hint=closest(track, TRACKERS))
    if not latents.is_dir():
        raise NoLatentsError(latents)
    folder = TrainingFolder(out)
    folder.require_ready(resume=resume, force=force)
    RunFolder(folder.path).require_writable()
    with console.working("loading"):
        from llrag_cli.engine.devices import find_device
        from llrag_cli.runs.latents import LatentFolder
        from llrag_cli.training.encoder.data import LatentPool, shape_text
        from llrag_cli.training.encoder.trainer import EncoderTrainer

        find_device(device)
    with console.counting("reading latents", total=len(LatentFolder(latents).files())) as advance:
        pool = LatentPool(latents, on_file=lambda: advance(1))
    preset = preset or ("tiny" if max(pool.shape[1:]) <= 16 else "wan")
    training = load_training(preset, settings=changes)
    folder.create(resume=resume, force=force)
    trainer = EncoderTrainer(
        pool,
        training,
        folder,
        device=device,
        precision=precision,  # type: ignore[arg-type]
        tracker=track,  # type: ignore[arg-type]
        resume=resume,
    )
    short = sum(length < training.chunk for length in pool.lengths)
    if short:
        console.warn(
            f"{counted(short, 'video')} shorter than a chunk of {training.chunk} frames: the last frame is repeated"
        )
    console.note(
        f"{counted(len(trainer.training_videos), 'video')} for training, {len(trainer.validation_videos)} for "
        f"validation, latents of {shape_text(pool.shape)} to {training.latent_dim}, preset `{preset}`; "
        f"writing {out} and {folder.path}/"
    )
    if trainer.epochs_done:
        console.note(f"resuming after epoch {trainer.epochs_done}")
    try:
        with console.counting("training", total=max(0, training.epochs - trainer.epochs_done)) as advance:

            def report(record: Mapping[str, Any]) -> None:
                loss = record["validation"]
                advance(1, f"loss {loss['total']:.4f} (delta {loss['delta']:.4f})")

            records = trainer.run(report)
    except KeyboardInterrupt:
        console.note(f"{counted(trainer.epochs_done, 'epoch')} done; `--resume` continues")
        raise
    best = records[trainer.best_epoch - 1]
    console.note(
        f"best in epoch {best['epoch']}: validation loss {best['validation']['total']:.4f}; curves in {folder.curves}, "
        f"summary in {folder.summary}"
    )
    if as_json:
        console.result_json({"encoder": str(out), "folder": str(folder.path), **best})
    else:
        console.result(str(out))
