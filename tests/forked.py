"""Commands that each run in a process of their own, in which torch is not imported yet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RUN_EACH = """
import io, json, os, sys, traceback
from contextlib import redirect_stderr, redirect_stdout
from llrag_cli.cli.main import main
import llrag_cli.presets, llrag_cli.scenes.timeline  # once for all commands

commands, outcomes = json.load(sys.stdin), {}
for name, arguments in commands.items():
    source, target = os.pipe()
    if os.fork() == 0:  # each command in a process of its own
        sys.argv, code, out, err = ["llrag", *arguments], 0, io.StringIO(), io.StringIO()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            code = traceback.format_exc()
        with os.fdopen(target, "w") as file:
            json.dump([code, out.getvalue(), err.getvalue(), "torch" in sys.modules], file)
        os._exit(0)
    os.close(target)
    with os.fdopen(source) as file:
        outcomes[name] = json.loads(file.read())
    os.wait()
json.dump(outcomes, sys.stdout)
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, what it printed, and whether it imported torch; ``code`` is a traceback after a crash."""

    code: int | str
    stdout: str
    stderr: str
    imported_torch: bool


def run_each(folder: Path, commands: Mapping[str, Sequence[str]]) -> dict[str, Outcome]:
    """Call the program in a folder with each list of arguments, by name."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH],
        input=json.dumps({name: [*arguments] for name, arguments in commands.items()}),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name: Outcome(*outcome) for name, outcome in json.loads(done.stdout).items()}
