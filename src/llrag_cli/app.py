"""The command root: options are parsed here, work is imported when it is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.bench_app import bench_app
from llrag_cli.errors import LlragError
from llrag_cli.options import (
    Archive,
    Attention,
    Compile,
    Device,
    Dtype,
    Encoder,
    EngineName,
    GpusPerVideo,
    Json,
    Memory,
    MemoryBudget,
    Offload,
    Rag,
    Set,
)

app = typer.Typer(
    name="llrag",
    help="Long videos from text, kept consistent by retrieval memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
download_app = typer.Typer(help="Fetch released weights, prompts, or models that metrics need.", no_args_is_help=True)
app.add_typer(download_app, name="download")
app.add_typer(bench_app, name="bench", help="Compare memories on the same prompts and seeds; also `benchmark`.")
app.add_typer(bench_app, name="benchmark", hidden=True)
presets_app = typer.Typer(help="List the bundled presets, or print one.", invoke_without_command=True)
app.add_typer(presets_app, name="presets")

To = Annotated[Path | None, typer.Option(help="Folder to put the files in; default: llrag's own, or LLRAG_WEIGHTS")]
FromSource = Annotated[str | None, typer.Option("--source", help="Where to take them from; --list says what there is")]
ShowList = Annotated[bool, typer.Option("--list", help="Say what there is: size, licence, source, present or not")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be fetched, and stop")]
Force = Annotated[bool, typer.Option("--force", help="Fetch and replace what is already there")]


def _version(*, asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(version("llrag"))
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit", callback=lambda value: _version(asked=value)),
    ] = False,
) -> None:
    """Shared by all commands."""


@app.command()
def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the video shows, in a sentence")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="tiny (embedded), self-forcing, causal-forcing, longlive; more in `llrag presets`"),
    ] = None,
    rag: Rag = True,
    memory: Memory = None,
    encoder: Encoder = None,
    seconds: Annotated[float, typer.Option(help="Length of the video; it is made in whole blocks of frames")] = 30.0,
    seed: Annotated[int, typer.Option(help="Same seed, same video")] = 0,
    image: Annotated[Path | None, typer.Option(help="Picture that opens the video; for frame-wise backbones")] = None,
    archive: Archive = None,
    memory_budget: MemoryBudget = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (with --prompts, of all runs); default: a new one in runs/")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file with one prompt a line; one run folder each")] = None,
    preset: Annotated[Path | None, typer.Option(help="Preset file to use instead of a bundled one")] = None,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Offload = False,
    attention: Attention = None,
    compile_: Compile = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run in the folder")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with an interrupted run; --seconds may be more than it had"),
    ] = None,
    engine: EngineName = "local",
    gpus_per_video: GpusPerVideo = None,
    as_json: Json = False,
) -> None:
    """Make a long video from a text prompt.

    The run folder holds video.mp4, run.json (settings, versions, timings), memory.jsonl (what each block recalled)
    and latents.safetensors. Whatever stops a run, --resume goes on where it was. With --prompts and --out,
    so does the same command.
    """
    from llrag_cli.commands.generate import GenerateRequest, run

    run(
        GenerateRequest(
            prompt=prompt,
            prompts=prompts,
            backbone=backbone,
            preset=preset,
            method="retrieval" if rag else "native",
            memory=memory,
            encoder=encoder,
            archive=archive,
            memory_budget=memory_budget,
            settings=tuple(settings or ()),
            seconds=seconds,
            seed=seed,
            image=image,
            out=out,
            device=device,
            dtype=dtype,
            offload=offload,
            attention=attention,
            compile=compile_,
            force=force,
            as_json=as_json,
            resume=resume,
            engine=engine,
            gpus_per_video=gpus_per_video,
            said=frozenset(name for name in context.params if _was_said(context, name)),
        )
    )


def _was_said(context: typer.Context, name: str) -> bool:
    """Whether an option was given on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@app.command()
def extend(
    run: Annotated[Path, typer.Argument(help="Run folder of the video")],
    seconds: Annotated[float, typer.Option(help="How much longer it becomes")] = 30.0,
    prompt: Annotated[str | None, typer.Option(help="What the new part shows; default: as before")] = None,
    archive: Archive = None,
    memory_budget: MemoryBudget = None,
    device: Device = "auto",
    offload: Offload = False,
    attention: Attention = None,
    compile_: Compile = False,
    as_json: Json = False,
) -> None:
    """Make a finished video longer, with its whole memory, under its prompt or a new one."""
    from llrag_cli.commands import resume

    resume.run(
        resume.ResumeRequest(
            run=run,
            further=seconds,
            prompt=prompt,
            archive=archive,
            memory_budget=memory_budget,
            device=device,
            offload=offload,
            attention=attention,
            compile=compile_,
            as_json=as_json,
        )
    )


@download_app.command("weights")
def download_weights(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="self-forcing, causal-forcing, longlive, encoder, vae, text-encoder, all; more in --list"),
    ] = None,
    to: To = None,
    source: FromSource = None,
    only: Annotated[bool, typer.Option("--only", help="Leave out what a backbone needs besides its own files")] = False,
    dtype: Annotated[str, typer.Option(help="Type that backbones are kept in")] = "bfloat16",
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove originals from the hub's cache once they are converted")
    ] = False,
    force: Force = False,
    show_list: ShowList = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fetch weights from the Hugging Face hub; without names, the three backbones and all they need.

    HF_TOKEN, HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE mean what they mean to huggingface_hub.
    """
    from llrag_cli.commands.download import DownloadRequest, run

    run(
        DownloadRequest(
            kind="weights",
            names=tuple(names or ()),
            to=to,
            source=source,
            only=only,
            dtype=dtype,
            prune=prune,
            force=force,
            show_list=show_list,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@download_app.command("prompts")
def download_prompts(
    names: Annotated[list[str] | None, typer.Argument(help="moviegenbench, vidprom; default: both")] = None,
    to: To = None,
    source: FromSource = None,
    force: Force = False,
    show_list: ShowList = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fetch prompt files: the 128 MovieGenBench prompts and the VidProM pool."""
    from llrag_cli.commands.download import DownloadRequest, run

    run(
        DownloadRequest(
            kind="prompts",
            names=tuple(names or ()),
            to=to,
            source=source,
            only=False,
            dtype="bfloat16",
            prune=False,
            force=force,
            show_list=show_list,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@download_app.command("metrics")
def download_metrics(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="dino, dinov2, clip-b32, clip-l14, aesthetic, raft, mapping; default: all"),
    ] = None,
    to: To = None,
    force: Force = False,
    show_list: ShowList = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Fetch the models that `llrag bench --backend official` measures with: 3 GB."""
    from llrag_cli.commands.download import DownloadRequest, run

    run(
        DownloadRequest(
            kind="metrics",
            names=tuple(names or ()),
            to=to,
            source=None,
            only=False,
            dtype="bfloat16",
            prune=False,
            force=force,
            show_list=show_list,
            dry_run=dry_run,
            as_json=as_json,
        )
    )


@app.command()
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
    shard: Annotated[str, typer.Option(metavar="I/N", help="Be worker I of N that fill the same folder")] = "1/1",
    batch: Annotated[int, typer.Option(help="Videos made together; changes speed and memory only")] = 1,
    preview: Annotated[bool, typer.Option("--preview", help="Also write each video as mp4")] = False,
    preset: Annotated[Path | None, typer.Option(help="Preset file to use instead of a bundled one")] = None,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    engine: EngineName = "local",
    gpus_per_video: GpusPerVideo = None,
    as_json: Json = False,
) -> None:
    """Make videos of a prompt pool and keep their latents, to train the retrieval encoder on.

    One safetensors file a video, latent_000012.safetensors, with prompt, seed and backbone inside.
    """
    from llrag_cli.commands.collect import CollectRequest, run

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
            shard=shard,
            batch=batch,
            preview=preview,
            device=device,
            dtype=dtype,
            engine=engine,
            gpus_per_video=gpus_per_video,
            as_json=as_json,
        )
    )


@app.command("train-encoder")
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
    from llrag_cli.commands.train_encoder import TrainEncoderRequest, run

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


@app.command("evaluate-encoder")
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
    from llrag_cli.commands.evaluate_encoder import EvaluateEncoderRequest, run

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


@app.command()
def inspect(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `llrag generate` made")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for memory.png and memory.html; default: the run's own")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a run recalled when: a map, thumbnails, and how it used its memory."""
    from llrag_cli.commands.inspect import InspectRequest, run

    run(InspectRequest(run=run_folder, out=out, as_json=as_json))


@app.command()
def doctor(
    seconds: Annotated[float, typer.Option(help="Length of the video to plan memory for")] = 30.0,
    backbone: Annotated[
        str | None, typer.Option(help="Show the whole plan of one backbone, part by part, for each archive")
    ] = None,
    rag: Rag = True,
    memory_budget: MemoryBudget = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    offload: Annotated[bool, typer.Option("--offload", help="Plan with weights kept on the host")] = False,
    as_json: Json = False,
) -> None:
    """Say what this machine has, which weights are here, and whether each backbone fits into its memory."""
    from llrag_cli.commands.doctor import DoctorRequest, run

    run(
        DoctorRequest(
            seconds=seconds,
            backbone=backbone,
            method="retrieval" if rag else "native",
            memory_budget=memory_budget,
            device=device,
            dtype=dtype,
            offload=offload,
            as_json=as_json,
        )
    )


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of golden vectors: NAME.json with NAME.safetensors")],
    device: Device = "cpu",
    dtype: Dtype = "float32",
    as_json: Json = False,
) -> None:
    """Replay golden vectors through the engine and compare; exit code 1 if a quantity is out of tolerance."""
    from llrag_cli.commands.verify import run

    run(folder, device=device, dtype=dtype, as_json=as_json)


@presets_app.callback()
def presets(context: typer.Context, as_json: Json = False) -> None:
    """List the bundled presets, or print one."""
    if context.invoked_subcommand is None:
        from llrag_cli.commands.presets import list_presets

        list_presets(as_json=as_json)


@presets_app.command("show")
def show_preset(
    name: Annotated[str, typer.Argument(help="A bundled preset, or a preset file")],
    rag: Rag = True,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Print one configuration, resolved, with every setting."""
    from llrag_cli.commands.presets import show

    show(name, method="retrieval" if rag else "native", settings=tuple(settings or ()), as_json=as_json)


def main() -> None:
    """The one place where an error becomes a message and an exit code."""
    try:
        app()
    except LlragError as error:
        typer.echo(f"error: {error.problem}\n\nhint: {error.hint}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
