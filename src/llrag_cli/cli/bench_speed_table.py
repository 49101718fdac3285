"""``llrag bench speed --choice``: ways to run a backbone, each measured by a command of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Any

import typer

from llrag_cli.cli.options import require_recordable
from llrag_cli.errors import UsageError

if TYPE_CHECKING:
    from llrag_cli.config import RunConfig
    from llrag_cli.evaluation.speed_table import Choice, Measured

SCHEMA = 1


@dataclass(frozen=True)
class Request:
    """What is measured, and how the result is shown."""

    choices: tuple[Choice, ...]
    memories: tuple[str, ...]
    common: tuple[str, ...]  # arguments of all commands that measure
    device: str
    dtype: str
    out: Path
    as_json: bool
    markdown: bool

    def arguments(self, choice: Choice) -> list[str]:
        """The command that measures a choice, without `llrag`."""
        flags = [*(["--compile"] if choice.compiled else []), *(["--cuda-graphs"] if choice.graphs else [])]
        settings = [part for setting in choice.settings for part in ("--set", setting)]
        where = ["--device", self.device, "--dtype", self.dtype]
        return ["bench", "speed", *self.common, *flags, *settings, *where, "--json"]

    def check(self, dtype: str) -> list[str]:
        """The command that replays recorded vectors there, without `llrag`."""
        return ["verify", "--device", self.device, "--dtype", dtype, "--json"]


def chosen(texts: Sequence[str], *, every: bool, configs: Sequence[RunConfig], device: str) -> tuple[Choice, ...]:
    """The choices that were named, or all that this backbone has; raises ``UsageError`` for one that it has not."""
    from llrag_cli.evaluation.speed_table import Choice, all_choices

    if every and texts:
        raise UsageError("`--all` and `--choice` cannot be combined", hint="give one of them")
    if not every:
        named = tuple(dict.fromkeys(map(Choice.parse, texts)))
        for choice in named:
            _require_possible(choice, configs, device=device)
        return named
    possible = []
    framewise = all(config.backbone.frames_per_block == 1 for config in configs)
    for choice in all_choices():
        if choice.graphs and not framewise:
            continue  # of little use
        try:
            _require_possible(choice, configs, device=device)
        except UsageError:
            continue
        possible.append(choice)
    return tuple(possible)


def _require_possible(choice: Choice, configs: Sequence[RunConfig], *, device: str) -> None:
    """Raise ``UsageError`` if it is known without torch that a choice cannot be measured."""
    from llrag_cli.models.family import family_of
    from llrag_cli.presets import with_settings

    for config in configs:
        changed = with_settings(config, choice.settings)
        family_of(changed).require_settings(changed)
    require_recordable(device, cuda_graphs=choice.graphs, offload=False, sharing="none")
    if choice.quantize == "fp8" and device == "cpu":
        raise UsageError("`fp8` needs a GPU of compute capability 8.9 or more", hint="choose `int8`")
    if choice.quantize == "int8" and not choice.compiled and device.startswith("cuda"):
        raise UsageError("`int8` on a GPU needs compiled layers", hint="choose `compiled+int8`")


def show_plan(request: Request) -> None:
    """Print the commands that would run, and what was measured before."""
    from llrag_cli.cli import console
    from llrag_cli.evaluation.speed_table import Results

    results = Results(request.out, request.memories)
    dtypes = ["float32"] if request.dtype in ("auto", "float32") else ["float32", request.dtype]
    for name, arguments in [
        *((f"verify-{dtype}", request.check(dtype)) for dtype in dtypes),
        *((choice.name, request.arguments(choice)) for choice in request.choices),
    ]:
        done = "" if results.find(name, arguments) is None else "  # measured before"
        console.result(f"llrag {join(arguments)}{done}")
    if request.dtype == "auto" and request.device != "cpu":
        console.note("on a GPU, `llrag verify` also runs in the dtype of the backbone")


def measure_table(request: Request, config: RunConfig) -> None:
    """Run the commands one after the other, and show the table. Exits with 1 if a check or every choice failed."""
    from llrag_cli.cli import console
    from llrag_cli.evaluation.speed_table import Results, about_table, markdown_of, table_of, verdict
    from llrag_cli.models.family import family_of
    from llrag_cli.runs.folder import RunFolder

    RunFolder(request.out).require_writable()
    with console.working("loading"):
        from llrag_cli.engine.devices import find_device, find_dtype

        target = find_device(request.device)  # a missing device is refused before anything runs
        dtype = str(find_dtype(request.dtype, target, family=family_of(config))).removeprefix("torch.")
    results, checks, rows = Results(request.out, request.memories), dict[str, "Measured"](), dict[str, "Measured"]()
    total = len({"float32", dtype}) + len(request.choices)
    with console.counting("measuring", total=total, resume_with="the same command") as advance:
        for each in dict.fromkeys(("float32", dtype)):
            checks[each] = results.measure(f"verify-{each}", request.check(each), _verify)
            advance(1, verdict(checks[each]))
        for choice in request.choices:
            advance(0, choice.name)
            rows[choice.name] = results.measure(choice.name, request.arguments(choice), _speed)
            advance(1)
    table, about = table_of(rows, request.memories), about_table(rows, checks)
    content = {
        "schema": SCHEMA,
        "checks": {name: check.model_dump(mode="json") for name, check in checks.items()},
        "choices": {name: row.model_dump(mode="json") for name, row in rows.items()},
    }
    results.write(markdown=markdown_of(table, about), content=content)
    if request.as_json:
        console.result_json(content)
    elif request.markdown:
        console.result(markdown_of(table, about))
    else:
        _show(table, about, rows)
        console.note(f"also written to {request.out / 'table.md'} and {request.out / 'table.json'}")
    agrees = all(check.result is not None and not check.result["failed"] for check in checks.values())
    if not agrees or all(row.result is None for row in rows.values()):
        raise typer.Exit(1)


def _show(table: Sequence[Sequence[str]], about: Sequence[str], rows: Mapping[str, Measured]) -> None:
    from rich.table import Table

    from llrag_cli.cli import console

    shown = Table(table[0][0], box=None, pad_edge=False)
    for heading in table[0][1:]:
        shown.add_column(heading, justify="right")
    for name, *cells in table[1:]:
        if rows[name].result is not None:
            shown.add_row(name, *cells)
    for line in about:
        console.result(line)
    if shown.row_count:
        console.result("")
        console.result_table(shown)
    for name, row in rows.items():
        if row.result is None:
            console.result(f"{name}: {row.error}")


def _speed(arguments: Sequence[str]) -> tuple[dict[str, Any] | None, str | None, float]:
    """Measure a choice in a process of its own."""
    code, out, err, seconds = run_command(arguments)
    result = _parsed(out) if code == 0 else None
    return (result, None, seconds) if isinstance(result, dict) else (None, reason_of_end(code, err), seconds)


def _verify(arguments: Sequence[str]) -> tuple[dict[str, Any] | None, str | None, float]:
    """Replay recorded vectors in a process of its own."""
    from llrag_cli.evaluation.speed_table import checked

    code, out, err, seconds = run_command(arguments)
    checks = _parsed(out) if code in (0, 1) else None
    if not isinstance(checks, list):
        return None, reason_of_end(code, err), seconds
    return checked(checks, dtype=arguments[arguments.index("--dtype") + 1]), None, seconds


def run_command(arguments: Sequence[str]) -> tuple[int, str, str, float]:
    """Run a command of llrag in a process of its own; its exit code, stdout, stderr and wall seconds."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "llrag_cli", *arguments], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr, time.perf_counter() - started


def reason_of_end(code: int, stderr: str) -> str:
    """Why a process did not give a result, in a clause."""
    if code < 0:
        name = next((each.name for each in signal.Signals if each == -code), str(-code))
        return f"ended by {name}" + (": memory may have run out" if name == "SIGKILL" else "")
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit code {code}"])[-1]


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
