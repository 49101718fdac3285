"""The only place that prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich.progress
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

from llrag_cli.errors import LlragWarning, RunLockedError
from llrag_cli.formatting import counted

if TYPE_CHECKING:
    from pathlib import Path

    from llrag_cli.runs.progress import Progress

_PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "emoji": False}  # `[red]` and `:cat:` are text in names
# report on every start what torchao, which diffusers imports where it is installed, does not need
_CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao")
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Text whose control characters are escapes: a name in a file could otherwise command the terminal."""
    return text.translate(_CONTROLS)


class _Console(Console):
    """A console that sends a terminal the styles of its own alone."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


_stderr = _Console(stderr=True, **_PLAIN)


def silence() -> None:
    """Print nothing from now on: of several processes at one task, only one prints."""
    _stderr.quiet = True


def result(text: str) -> None:
    """Print a result to stdout."""
    if not _stderr.quiet:
        sys.stdout.write(printable(text) + "\n")
        sys.stdout.flush()  # a result is there when it is made, also for a reader of a pipe


def result_json(value: Any) -> None:
    """Print a result as JSON."""
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    text = json.dumps(value, indent=2, ensure_ascii=not unicode)
    result(re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text))


def result_table(table: Table) -> None:
    """Print a table to stdout; when piped it is wide enough for its content."""
    console = _Console(width=None if sys.stdout.isatty() else 160, **_PLAIN)
    console.print(table)


def number(value: float | None) -> str:
    """A metric in a table."""
    return "-" if value is None else f"{value:.4f}" if abs(value) < 2 else f"{value:.2f}"


def result_not_measured(backend: Mapping[str, Any]) -> None:
    """Metrics that a backend cannot compute, and why; those with the same reason together."""
    reasons: dict[str, list[str]] = {}
    for name, reason in backend["unavailable"].items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        result(f"not measured: {', '.join(names)}: {reason}")
    result(backend["not_measured"])


def note(text: str) -> None:
    """Print information to stderr."""
    _stderr.print(text)


def warn(text: str) -> None:
    """Print a warning to stderr."""
    _stderr.print(Text("warning: ", style="yellow").append(text, style="default"))


@contextmanager
def library_warnings() -> Iterator[None]:
    """Print the library's warnings as the command line's own."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        shown_otherwise = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: Any, **options: Any) -> None:
            if issubclass(category, LlragWarning):
                warn(str(message))
            else:
                shown_otherwise(message, category, *rest, **options)

        warnings.showwarning = show
        warnings.simplefilter("always", LlragWarning)
        yield


def waiting_for(error: RunLockedError, count: int) -> None:
    """Say that another process makes what is left."""
    note(f"{error.owner} makes {counted(count, 'video')} that {'is' if count == 1 else 'are'} left; waiting")


class _Numbers(rich.progress.ProgressColumn):
    """Blocks, seconds of video, speed, time left and retrieved frames."""

    def render(self, task: rich.progress.Task) -> Text:
        state: Progress | None = task.fields.get("state")
        if state is None or not state.done:
            return Text(f"block 0/{task.total:.0f}", style="dim")
        if state.done <= state.resumed_at:
            return Text(f"catching up, block {state.done}/{state.resumed_at}", style="dim")
        left = state.elapsed / (state.done - state.resumed_at) * (state.blocks - state.done)
        parts = [
            f"block {state.done}/{state.blocks}",
            f"{state.seconds_of_video:.1f} s",
            f"{state.speed * task.fields['frame_rate']:.0f} fps",
            f"{int(left // 60)}:{int(left % 60):02d} left",
        ]
        if state.retrieved:
            parts.append(f"retrieved {' '.join(map(str, state.retrieved))}")
        return Text(" · ".join(parts))


@contextmanager
def _stopped(resume_with: str | None) -> Iterator[None]:
    """On Ctrl-C, name the command that continues."""
    try:
        yield
    except KeyboardInterrupt:
        if resume_with is not None:
            note(f"stopped; {resume_with} continues from here")
        raise


@contextmanager
def generation(
    description: str, *, blocks: int, frame_rate: int, folder: Path, resume_with: str | None = None
) -> Iterator[Any]:
    """A live line on stderr while a video is generated; yields the function to call with each ``Progress``.

    ``resume_with`` names the command that continues after Ctrl-C, if it is not the one that resumes the run.
    """
    numbers = _Numbers(table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=8),
        numbers,
    )
    resume_with = resume_with or f"`llrag generate --resume {shlex.quote(str(folder))}`"
    with _stopped(resume_with), rich.progress.Progress(*columns, console=_stderr, transient=False) as display:
        task = display.add_task(description, total=blocks, state=None, frame_rate=frame_rate)

        def update(state: Progress) -> None:
            display.update(task, completed=state.done, state=state)

        yield update


@contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner on stderr."""
    with _stderr.status(Text(text)):
        yield


@contextmanager
def download(totals: dict[str, int]) -> Iterator[Callable[[str, int], None]]:
    """A live line on stderr for each phase of a download that has bytes to handle; yields ``advance(phase, bytes)``."""
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    names = {"fetch": "downloading", "check": "checking", "convert": "converting"}
    with rich.progress.Progress(*columns, console=_stderr) as display:
        tasks = {
            phase: display.add_task(names[phase], total=total, start=False) for phase, total in totals.items() if total
        }

        def advance(phase: str, amount: int) -> None:
            if phase in tasks:
                display.start_task(tasks[phase])
                display.advance(tasks[phase], amount)

        try:
            yield advance
        except KeyboardInterrupt:
            display.stop()
            note("stopped; complete files are kept, and the same command continues with the others")
            raise


@contextmanager
def counting(description: str, *, total: int, resume_with: str | None = None) -> Iterator[Any]:
    """One live line on stderr for work in equal steps; yields ``advance(steps, status)``.

    ``resume_with`` names the command that continues after Ctrl-C, if there is one.
    """
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[status]}", markup=False),
    )
    with _stopped(resume_with), rich.progress.Progress(*columns, console=_stderr) as display:
        task = display.add_task(description, total=total, status="")

        def advance(steps: int, status: str = "") -> None:
            display.update(task, advance=steps, status=status)

        yield advance
