"""``llrag collect``, ``llrag train-encoder`` and ``llrag evaluate-encoder``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.cli.options import Device, Dtype, Encoder, EngineName, Json, Memory, Rag, Set


def collect(
    prompts: Annotated[Path, typer.Argument(help="Text file with one prompt a line")],
    out: Annotated[Path, typer.Option(help="Folder for the latents; begun again, it goes on where it stopped")],
    backbone: Annotated[str | None, typer.Option(help="As for generate")] = None,
    rag: Rag = False,
    memory: Memory = None,
    encoder: Encoder = None,
    seconds: Annotated[float, typer.Option(help="Length of each video")] = 30.0,
    seed: Annotated[int, typer.Option(help="Seed of the noise, and of the share that is drawn")] = 0,
    ratio: Annotated[float, typer.Option(help="Share of the prompts to draw, at most 1")] = 1.0,
    batch: Annotated[int, typer.Option(help="Videos made together; changes speed and memory only")] = 1,
    preview: Annotated[bool, typer.Option("--preview", help="Also write each video as mp4")] = False,
    preset: Annotated[Path | None, typer.Option(help="Preset file to use instead of a bundled one")] = None,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: EngineName = "local",
    as_json: Json = False,
) -> None:
    """Make videos of a prompt pool and keep their latents, to train the retrieval encoder on.

    One safetensors file a video, latent_000012.safetensors, with prompt, seed and backbone inside.
    """
    from llrag_cli.cli.collect import CollectRequest, run

    run(
        CollectRequest(
            prompts=prompts,
            out=out,
            backbone=backbone,
            preset=preset,
            method="retrieval" if rag else "native",
            memory=memory,
            encoder=encoder,
            settings=tuple(settings or ()),
            seconds=seconds,
            seed=seed,
            ratio=ratio,
            batch=batch,
            preview=preview,
            device=device,
            dtype=dtype,
            engine=engine,
            as_json=as_json,
        )
    )


def train_encoder(
    latents: Annotated[Path, typer.Option(help="Folder that `llrag collect` filled, or of the original's latent_*.pt")],
    out: Annotated[Path, typer.Option(help="File for the best encoder; what else there is goes beside it")],
    preset: Annotated[
        str | None, typer.Option(help="wan, tiny or a file; by default what suits the size of the latents")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the videos; default: the preset's")] = None,
    settings: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier training stopped")] = False,
    force: Annotated[bool, typer.Option("--force", help="Begin anew where one has been trained")] = False,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16; auto is bf16 on a GPU that has it")] = "auto",
    track: Annotated[str | None, typer.Option(help="Also report to tensorboard or wandb")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto is the GPU if there is one")] = "auto",
    as_json: Json = False,
) -> None:
    """Train the retrieval encoder: reconstruction, Window Temporal Delta Loss and smoothness.

    Several GPUs: `accelerate launch -m llrag_cli train-encoder ...`.
    """
    from llrag_cli.cli.train_encoder import TrainEncoderRequest, run

    run(
        TrainEncoderRequest(
            latents=latents,
            out=out,
            preset=preset,
            epochs=epochs,
            settings=tuple(settings or ()),
            resume=resume,
            force=force,
            precision=precision,
            track=track,
            device=device,
            as_json=as_json,
        )
    )


def evaluate_encoder(
    encoders: Annotated[
        list[Path] | None, typer.Argument(help="Encoders to compare; default: the embedded one")
    ] = None,
    latents: Annotated[
        Path | None, typer.Option(help="Judge on these latents, without known answers; default: the sprite world")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for table and picture")] = None,
    videos: Annotated[int, typer.Option(help="Videos to judge on")] = 24,
    seconds: Annotated[float, typer.Option(help="Length of each, in the sprite world")] = 160.0,
    count: Annotated[int, typer.Option(help="K: frames recalled for each query")] = 6,
    vision: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Also compare a vision model of transformers, by name or folder")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the scenes")] = 0,
    as_json: Json = False,
) -> None:
    """Measure how well keys find what matters: retrieval encoders beside average pooling and random projection."""
    from llrag_cli.cli.evaluate_encoder import EvaluateEncoderRequest, run

    run(
        EvaluateEncoderRequest(
            encoders=tuple(encoders or ()),
            latents=latents,
            out=out,
            videos=videos,
            seconds=seconds,
            count=count,
            vision=vision,
            seed=seed,
            as_json=as_json,
        )
    )
