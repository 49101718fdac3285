"""The only place that prints: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich.progress
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from pathlib import Path

    from llrag_cli.runs.maker import Progress

_stderr = Console(stderr=True, highlight=False)


def silence() -> None:
    """Say nothing more: of several processes at one task, one speaks."""
    _stderr.quiet = True


def result(text: str) -> None:
    """A result, for people and pipes."""
    if not _stderr.quiet:
        sys.stdout.write(text + "\n")


def result_json(value: Any) -> None:
    """A result, for programs."""
    result(json.dumps(value, indent=2, ensure_ascii=False))


def result_table(table: Table) -> None:
    """A result as a table; wide enough for its content when piped."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
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
    """Something worth knowing, on stderr."""
    _stderr.print(text, markup=False)


def warn(text: str) -> None:
    """Something that may not be what was meant."""
    _stderr.print(Text("warning: ", style="yellow").append(text, style="default"))


class _Numbers(rich.progress.ProgressColumn):
    """Blocks, seconds of video, speed, time left and what is being recalled."""

    def render(self, task: rich.progress.Task) -> Text:
        state: Progress | None = task.fields.get("state")
        if state is None or not state.done:
            return Text(f"block 0/{task.total:.0f}", style="dim")
        if state.done <= state.before:
            return Text(f"catching up, block {state.done}/{state.before}", style="dim")
        left = state.elapsed / (state.done - state.before) * (state.blocks - state.done)
        parts = [
            f"block {state.done}/{state.blocks}",
            f"{state.seconds_of_video:.1f} s",
            f"{state.speed * task.fields['frame_rate']:.0f} fps",
            f"{int(left // 60)}:{int(left % 60):02d} left",
        ]
        if state.recalled:
            parts.append(f"recalls {' '.join(map(str, state.recalled))}")
        return Text(" · ".join(parts))


@contextmanager
def _stopped(goes_on: str | None) -> Iterator[None]:
    """On Ctrl-C, say which command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if goes_on is not None:
            note(f"stopped; {goes_on} goes on from here")
        raise


@contextmanager
def generation(description: str, *, blocks: int, frame_rate: int, folder: Path) -> Iterator[Any]:
    """A live line on stderr while a video is made; yields the function to call with each ``Progress``."""
    numbers = _Numbers(table_column=Column(no_wrap=True, overflow="ellipsis"))
    columns = (rich.progress.TextColumn("{task.description}"), rich.progress.BarColumn(bar_width=8), numbers)
    goes_on = f"`llrag generate --resume {folder}`"
    with _stopped(goes_on), rich.progress.Progress(*columns, console=_stderr, transient=False) as display:
        task = display.add_task(description, total=blocks, state=None, frame_rate=frame_rate)

        def update(state: Progress) -> None:
            display.update(task, completed=state.done, state=state)

        yield update


@contextmanager
def working(text: str) -> Iterator[None]:
    """A spinner on stderr."""
    with _stderr.status(text):
        yield


@contextmanager
def download(total: int) -> Iterator[Any]:
    """One live line on stderr while files come in; yields ``advance(what is done, bytes further)``."""
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=_stderr) as display:
        task = display.add_task("fetching", total=total or None)
        names = {"fetch": "fetching", "check": "checking", "convert": "converting"}

        def advance(what: str, amount: int) -> None:
            display.update(task, description=names[what], advance=amount if what == "fetch" else 0)

        yield advance


@contextmanager
def counting(description: str, *, total: int, goes_on: str | None = None) -> Iterator[Any]:
    """One live line on stderr while something is done in equal steps; yields ``advance(steps, what to say)``.

    ``goes_on`` names the command that goes on after Ctrl-C, if one does.
    """
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(bar_width=24),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.fields[said]}"),
    )
    with _stopped(goes_on), rich.progress.Progress(*columns, console=_stderr) as display:
        task = display.add_task(description, total=total, said="")

        def advance(steps: int, said: str = "") -> None:
            display.update(task, advance=steps, said=said)

        yield advance
