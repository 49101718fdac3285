"""Commands that each run in a process of their own, forked from one that has imported what they need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

SERVE = """
import json, os, signal, sys, traceback
import torch
from llrag_cli.cli.main import main
import llrag_cli.batch.jobs, llrag_cli.runs.maker, llrag_cli.models.embedded.model  # once for all commands

torch.set_num_threads(1)

def run(arguments, folder, streams, environment):
    os.setsid()
    os.chdir(folder)
    for number, (file, flags) in enumerate(zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY))):
        opened = os.open(file, flags)  # a terminal becomes that of the session
        os.dup2(opened, number)
        os.close(opened)
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)
    os.environ.update(environment)
    sys.argv = ["llrag", *arguments]
    main()

for line in sys.stdin:
    request = json.loads(line)
    if "wait" in request:
        ended, status = os.waitpid(request["wait"], 0 if request["block"] else os.WNOHANG)
        answer = os.waitstatus_to_exitcode(status) if ended else None
    elif not (answer := os.fork()):
        code = 0
        try:
            run(**request)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(json.dumps(answer), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, what it printed, and whether it imported torch; ``code`` is a traceback after a crash."""

    code: int | str
    stdout: str
    stderr: str
    imported_torch: bool


def run_each(folder: Path, commands: Mapping[str, Sequence[str]]) -> dict[str, Outcome]:
    """Call the program in a folder with each list of arguments, by name; torch is not imported yet."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_EACH],
        input=json.dumps({name: [*arguments] for name, arguments in commands.items()}),
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name: Outcome(*outcome) for name, outcome in json.loads(done.stdout).items()}


class Starter:
    """Starts commands without the seconds that importing torch takes: each is forked from a process that has done so.

    That process has one thread, and nothing of pytest.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> Any:
        """The answer of the process to a request."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    @contextmanager
    def start(
        self, folder: Path, *arguments: str, environment: Mapping[str, str] | None = None, terminal: str = ""
    ) -> Iterator[Started]:
        """A command in a session of its own, which does not outlive the block; ``terminal`` is that of its session."""
        with tempfile.TemporaryDirectory() as scratch:
            files = [Path(scratch) / name for name in ("stdout", "stderr")]
            for file in files:
                file.touch()
            streams = [terminal] * 3 if terminal else ["/dev/null", *map(str, files)]
            number = self.ask(
                arguments=arguments, folder=str(folder), streams=streams, environment=dict(environment or {})
            )
            process = Started(self, number, *files)
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    process.wait()


class Started:
    """A command that was started, much like ``subprocess.Popen``."""

    def __init__(self, starter: Starter, pid: int, stdout: Path, stderr: Path) -> None:
        self.pid = pid
        self.returncode: int | None = None  # of a process that has ended: its exit code, or minus the signal
        self._starter, self._stdout, self._stderr = starter, stdout, stderr

    def poll(self) -> int | None:
        """How the process ended, or None."""
        return self._ask(block=False)

    def wait(self) -> int | None:
        """How the process ended, once it has."""
        return self._ask(block=True)

    def _ask(self, *, block: bool) -> int | None:
        if self.returncode is None:
            self.returncode = self._starter.ask(wait=self.pid, block=block)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def said(self) -> tuple[str, str]:
        """What the process wrote to stdout and stderr so far."""
        return self._stdout.read_text(encoding="utf-8"), self._stderr.read_text(encoding="utf-8")
