"""The command root: options are parsed here, work is imported when it is asked for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from llrag_cli.cli import console
from llrag_cli.cli.bench import bench_app
from llrag_cli.cli.download import download_app
from llrag_cli.cli.hints import hint_for
from llrag_cli.cli.options import (
    MANY,
    Archive,
    Attention,
    Compile,
    Device,
    Dtype,
    Encoder,
    EngineName,
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


app.command()(generate)
app.command()(extend)
app.command()(inspect)
app.command()(collect)
app.command("train-encoder")(train_encoder)
app.command("evaluate-encoder")(evaluate_encoder)
app.command()(doctor)
app.command()(verify)


def main() -> None:
    """The one place where an error becomes a message and an exit code."""
    try:
        with console.library_warnings():
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
