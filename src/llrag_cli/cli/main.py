"""The command root: one file per command; each imports what it needs when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from llrag_cli.cli import console
from llrag_cli.cli.bench import bench_app
from llrag_cli.cli.collect import collect
from llrag_cli.cli.doctor import doctor
from llrag_cli.cli.download import download_app
from llrag_cli.cli.evaluate_encoder import evaluate_encoder
from llrag_cli.cli.export import export
from llrag_cli.cli.extend import extend
from llrag_cli.cli.generate import generate
from llrag_cli.cli.hints import hint_for
from llrag_cli.cli.inspect import inspect
from llrag_cli.cli.presets import presets_app
from llrag_cli.cli.scene import scene_app
from llrag_cli.cli.storyboard import storyboard
from llrag_cli.cli.train_encoder import train_encoder
from llrag_cli.cli.verify import verify
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.signals import exit_code_of_signals

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
app.add_typer(presets_app, name="presets")
app.add_typer(scene_app, name="scene")


def _version(*, requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(version("llrag"))
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit", callback=lambda value: _version(requested=value)),
    ] = False,
) -> None:
    """Options of all commands."""


app.command()(generate)
app.command()(extend)
app.command()(storyboard)
app.command()(export)
app.command()(inspect)
app.command()(collect)
app.command("train-encoder")(train_encoder)
app.command("evaluate-encoder")(evaluate_encoder)
app.command()(doctor)
app.command()(verify)


@exit_code_of_signals()
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
