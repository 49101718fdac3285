"""The command root: one file per command; each imports what it needs when it runs."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from llrag_cli.cli import console
from llrag_cli.cli.bench import bench_app
from llrag_cli.cli.collect import collect
from llrag_cli.cli.decode import decode
from llrag_cli.cli.demo import demo
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
from llrag_cli.cli.serve import serve
from llrag_cli.cli.storyboard import storyboard
from llrag_cli.cli.streams import forgiving_streams
from llrag_cli.cli.studio import studio, watch
from llrag_cli.cli.train_encoder import train_encoder
from llrag_cli.cli.verify import verify
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.guarded import shortened
from llrag_cli.files.resources import out_of_memory
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

        console.result(version("llrag"))
        raise typer.Exit


@app.callback()
def root(
    show_version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit", callback=lambda value: _version(requested=value)),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print a traceback if llrag fails unexpectedly; or set LLRAG_DEBUG=1")
    ] = False,
) -> None:
    """Options of all commands."""
    if debug:
        os.environ["LLRAG_DEBUG"] = "1"


app.command()(generate)
app.command()(extend)
app.command()(demo)
app.command()(storyboard)
app.command()(decode)
app.command()(export)
app.command()(inspect)
app.command()(collect)
app.command("train-encoder")(train_encoder)
app.command("evaluate-encoder")(evaluate_encoder)
app.command()(studio)
app.command()(watch)
app.command()(serve)
app.command()(doctor)
app.command()(verify)


@exit_code_of_signals()
def main() -> None:
    """The one place where an error becomes a message and an exit code."""
    with forgiving_streams() as lost:
        try:
            _require_text(sys.argv[1:])
            with console.library_warnings():
                app()
        except SystemExit as end:
            if end.code or (error := lost()) is None:
                raise
            reason = (error.strerror or str(error)).lower()
            _fail(f"not all results could be printed: {reason}", "the work is done; what it wrote to files is complete")
        except LlragError as error:
            _fail(_readable(error.problem), hint_for(error), code=2 if isinstance(error, UsageError) else 1)
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            sys.exit(130)
        except Exception as error:  # noqa: BLE001 - the last resort: a traceback is shown only to those who ask for it
            if os.environ.get("LLRAG_DEBUG") == "1":
                traceback.print_exc()
            _fail(*_unexpected(error))


def _fail(problem: str, hint: str, *, code: int = 1) -> NoReturn:
    """Print an error, and exit."""
    sys.stderr.write(console.printable(f"error: {problem}" + (f"\n\nhint: {hint}\n" if hint else "\n")))
    sys.exit(code)


def _readable(problem: str) -> str:
    """A sentence whose quoted paths and texts are cut off where they are very long."""
    return re.sub(r"`([^`]{500})[^`]+`", r"`\1…`", problem)


def _require_text(arguments: Sequence[str]) -> None:
    """Raise an error for an argument that is not text in UTF-8: it could be neither recorded nor printed."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = shortened(argument.encode(errors="backslashreplace").decode())
            raise UsageError(
                f"the argument `{shown}` is not UTF-8 text", hint="check the terminal's encoding"
            ) from None


def _unexpected(error: Exception) -> tuple[str, str]:
    """A sentence and a hint about an error that nothing expected: of the machine, or a bug."""
    if out_of_memory(error):
        return "memory ran out", "free some memory, or ask for less at once"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        path = shortened(error.filename)
        return f"`{path}` cannot be used: {error.strerror.lower()}", "check the path, its permissions and the disk"
    text = shortened(" ".join(str(error).split()), 200)
    about = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return (
        f"this is a bug in llrag: {about}",
        "report it with the command and what `llrag --debug ...` prints, on the page of the project's issues",
    )


if __name__ == "__main__":
    main()
