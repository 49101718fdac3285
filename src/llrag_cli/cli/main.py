"""The command root: options are parsed here, work is imported when it is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.cli.bench import bench_app
from llrag_cli.cli.download import download_app
from llrag_cli.cli.hints import hint_for
from llrag_cli.cli.inspect import inspect
from llrag_cli.cli.options import (
    MANY,
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
from llrag_cli.cli.training import collect, evaluate_encoder, train_encoder
from llrag_cli.errors import LlragError, UsageError

app = typer.Typer(
    name="llrag",
    help="Long videos from text, kept consistent by retrieval memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(download_app, name="download")
app.add_typer(bench_app, name="bench")
app.add_typer(bench_app, name="benchmark", hidden=True)
presets_app = typer.Typer(help="List the bundled presets, or print one.", invoke_without_command=True)
app.add_typer(presets_app, name="presets")


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
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt a line; one run folder each", **MANY)
    ] = None,
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

    The run folder holds video.mp4, run.json (settings, versions, timings),
    memory.jsonl (what each block recalled) and latents.safetensors.

    Whatever stops a run, --resume goes on where it was. With --prompts and
    --out, so does the same command.
    """
    from llrag_cli.cli.generate import GenerateRequest, run

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
    from llrag_cli.cli import resume

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


app.command()(collect)
app.command("train-encoder")(train_encoder)
app.command("evaluate-encoder")(evaluate_encoder)
app.command()(inspect)


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
    from llrag_cli.cli.doctor import DoctorRequest, run

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
    from llrag_cli.cli.verify import run

    run(folder, device=device, dtype=dtype, as_json=as_json)


@presets_app.callback()
def presets(context: typer.Context, as_json: Json = False) -> None:
    """List the bundled presets, or print one."""
    if context.invoked_subcommand is None:
        from llrag_cli.cli.presets import list_presets

        list_presets(as_json=as_json)


@presets_app.command("show")
def show_preset(
    name: Annotated[str, typer.Argument(help="A bundled preset, or a preset file")],
    rag: Rag = True,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Print one configuration, resolved, with every setting."""
    from llrag_cli.cli.presets import show

    show(name, method="retrieval" if rag else "native", settings=tuple(settings or ()), as_json=as_json)


def main() -> None:
    """The one place where an error becomes a message and an exit code."""
    try:
        app()
    except LlragError as error:
        hint = hint_for(error)
        typer.echo(f"error: {error.problem}" + (f"\n\nhint: {hint}" if hint else ""), err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
