"""The command root: options are parsed here, work is imported when it is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.errors import LlragError

app = typer.Typer(
    name="llrag",
    help="Long videos from text, kept consistent by retrieval memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
presets_app = typer.Typer(help="List the bundled presets, or print one.", invoke_without_command=True)
app.add_typer(presets_app, name="presets")

Rag = Annotated[bool, typer.Option("--rag/--no-rag", help="Recall past frames, or see the plain sliding window only")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the preset; repeatable")
]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1; auto is the first GPU, else the CPU")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto suits backbone and device")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout")]


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
    prompt: Annotated[str | None, typer.Argument(help="What the video shows, in a sentence")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="tiny (embedded), self-forcing, causal-forcing or longlive")
    ] = None,
    rag: Rag = True,
    seconds: Annotated[float, typer.Option(help="Length of the video; it is made in whole blocks of frames")] = 30.0,
    seed: Annotated[int, typer.Option(help="Same seed, same video")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (with --prompts, of all runs); default: a new one in runs/")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file with one prompt a line; one run folder each")] = None,
    preset: Annotated[Path | None, typer.Option(help="Preset file to use instead of a bundled one")] = None,
    settings: Set = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run in the folder")] = False,
    as_json: Json = False,
) -> None:
    """Make a long video from a text prompt.

    The run folder holds video.mp4, run.json (settings, versions, timings) and memory.jsonl (what each block recalled).
    """
    from llrag_cli.commands.generate import GenerateRequest, run

    run(
        GenerateRequest(
            prompt=prompt,
            prompts=prompts,
            backbone=backbone,
            preset=preset,
            method="retrieval" if rag else "native",
            settings=tuple(settings or ()),
            seconds=seconds,
            seed=seed,
            out=out,
            device=device,
            dtype=dtype,
            force=force,
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
