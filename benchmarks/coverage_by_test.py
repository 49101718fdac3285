"""Record which lines each test runs: ``python benchmarks/coverage_by_test.py FILE``.

Runs the whole suite once under coverage.py, in about twice its usual time. FILE is what ``benchmarks/mutations.py``
chooses tests by. Lines that a test runs in processes of its own count too.
"""

from __future__ import annotations

import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import coverage
import pytest
import typer
from coverage import CoverageData

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "llrag_cli"
SETTINGS = """\
[run]
core = ctrace
parallel = true
source = {package}
data_file = {folder}/lines
context = ${{PYTEST_CURRENT_TEST-}}
patch = fork, _exit
disable_warnings = no-data-collected, module-not-measured, module-not-imported, already-imported, no-ctracer,
    dynamic-conflict, no-sysmon, couldnt-parse, trace-changed
"""
FOLDER = "LLRAG_COVERAGE_BY_TEST"  # environment variable with the folder that the plugin writes to
SETUP = " (setup)"  # of a fixture, whose lines count for every test of the file: others may share it


def main(
    file: Annotated[Path, typer.Argument(help="Where to write what was recorded, as JSON")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Passed to pytest, after --: which tests")] = None,
) -> None:
    """Run the suite, and write the lines of each file with the tests that run them, and the seconds of each test."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder) / "coverage.ini"
        settings.write_text(SETTINGS.format(package=PACKAGE, folder=folder), encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(ROOT / "src")]),
            "COVERAGE_PROCESS_START": str(settings),
            FOLDER: folder,
        }
        subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "coverage_by_test", "-p", "no:cacheprovider", *(arguments or ())],
            cwd=ROOT,
            env=environment,
        )
        combined = coverage.Coverage(config_file=str(settings))
        combined.combine()
        tests = _tests(Path(folder))
        found = {"seconds": tests.seconds, "lines": _lines(combined.get_data(), tests)}
        file.write_text(json.dumps(found), encoding="utf-8")


@dataclass
class _Tests:
    seconds: dict[str, float]  # of each test function, over all its cases
    of_starter: set[str]  # those that use the process from which commands are forked, which a fixture starts


def _tests(folder: Path) -> _Tests:
    seconds: collections.Counter[str] = collections.Counter()
    of_starter = set()
    for log in folder.glob("*.tests"):
        for line in log.read_text(encoding="utf-8").splitlines():
            name, took, forks = json.loads(line)
            seconds[name] += took
            if forks:
                of_starter.add(name)
    return _Tests(dict(seconds), of_starter)


def _lines(data: CoverageData, tests: _Tests) -> dict[str, dict[int, list[str]]]:
    """Test functions by file below the package and line; lines that only an import runs have none."""
    names = {context: _names(context, tests) for context in data.measured_contexts()}
    found: dict[str, dict[int, list[str]]] = {}
    for path in sorted(data.measured_files()):
        lines = data.contexts_by_lineno(path)
        found[Path(path).relative_to(PACKAGE).as_posix()] = {
            line: sorted(set().union(*(names[context] for context in contexts))) for line, contexts in lines.items()
        }
    return found


def _names(context: str, tests: _Tests) -> set[str]:
    """Tests named in ``static|dynamic``: of the test in which a process was started, and of the one that runs."""
    names = {*re.findall(r"tests/[\w/]+\.py(?:::\w+)+", context)}
    if SETUP in context:
        files = {name.partition("::")[0] for name in names}
        names |= {name for name in tests.seconds if name.partition("::")[0] in files}
    if SETUP in context.partition("|")[0]:
        names |= tests.of_starter
    return names & {*tests.seconds}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Tell coverage which test runs, also for processes that it forks; note its seconds."""
    running, name = coverage.Coverage.current(), item.nodeid.partition("[")[0]
    started = time.monotonic()
    _switch(running, name)
    result = yield
    _switch(running, "")
    log = Path(os.environ[FOLDER]) / f"{os.getpid()}.tests"
    with log.open("a", encoding="utf-8") as file:
        forks = "starter" in getattr(item, "fixturenames", ())
        file.write(json.dumps([name, time.monotonic() - started, forks]) + "\n")
    return result


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[object]) -> Iterator[object]:
    """Mark the lines of a fixture that tests share."""
    if fixturedef.scope == "function":
        return (yield)
    running = coverage.Coverage.current()
    before = running.config.context
    _switch(running, before + SETUP)
    result = yield
    _switch(running, before)
    return result


def _switch(running: coverage.Coverage, context: str) -> None:
    running.switch_context(context)
    running.config.context = context  # of processes that are forked


if __name__ == "__main__":
    typer.run(main)
