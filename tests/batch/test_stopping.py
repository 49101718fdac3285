"""However a command is stopped, nothing stays behind: no process, no lock, and the same command continues."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conftest import call_llrag
from forked import Started, Starter
from llrag_cli.runs.folder import RunFolder
from waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
FEW = ("--seconds", "24", "--set", "sampler.steps=[1000, 500]", "--set", "video.upscale=1", "--backbone", "tiny")
PROMPTS = "a red circle\na white cross passes by\n"
MANY = ("generate", "--prompts", "prompts.txt", "--out", "all", "--engine", "local:2", *FEW)
HERE = ("--engine", "local")  # to continue; that workers do so too is seen in test_executors.py
ONE = ("generate", "a red circle", "--out", "run", *FEW)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Command:
    """A command that runs, and everything that it started."""

    process: Started | subprocess.Popen[str]
    folder: Path
    mark: str  # in the environment of all that it starts

    def processes(self) -> list[int]:
        """Those that live, also if their parent does not."""
        found = {self.process.pid} if self.process.poll() is None else set()
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if self.mark.encode() in file.read_bytes():
                    found.add(int(file.parent.name))
        return sorted(found)

    def end(self) -> str:
        """What it wrote to stderr, once nothing of it is left."""
        if isinstance(self.process, subprocess.Popen):
            said = self.process.communicate()[1]  # ends when the last process lets go of its stderr
        else:
            self.process.wait()
        wait_until(lambda: not self.processes())
        return self.process.said()[1] if isinstance(self.process, Started) else said

    def wait_for_blocks(self, *runs: str) -> None:
        """Wait until every run has committed blocks and is encoding video.

        A process that has come so far is held until the others have, however unevenly a busy machine treats them.
        """
        held: dict[Path, int] = {}

        def begun() -> bool:
            assert self.process.poll() is None, self.end()
            for folder in [self.folder / run for run in runs]:
                if folder not in held and is_amid(folder):
                    held[folder] = owner_of(folder)
                    os.kill(held[folder], signal.SIGSTOP)
            return len(held) == len(runs)

        try:
            wait_until(begun)
            assert all(is_amid(folder) for folder in held)
        finally:
            for number in held.values():
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGCONT)


def is_amid(run: Path) -> bool:
    """Whether a run has committed blocks and is encoding video."""
    return RunFolder(run).blocks_committed() >= 2 and bool(list(run.glob("*.part.mp4")))


def owner_of(run: Path) -> int:
    """The process that generates a run."""
    return int((RunFolder(run).owner() or "").split()[1])


@contextmanager
def running(folder: Path, *arguments: str, starter: Starter | None, terminal: str = "") -> Iterator[Command]:
    """A command in a session of its own; nothing of it outlives the test. Without a ``starter`` Python is started."""
    (folder / "prompts.txt").write_text(PROMPTS)
    name, value = "LLRAG_TEST_MARK", str(uuid.uuid4())
    environment = {"OMP_NUM_THREADS": "1", name: value}
    with ExitStack() as stack:
        if starter is not None:
            process: Any = stack.enter_context(
                starter.start(folder, *arguments, environment=environment, terminal=terminal)
            )
        else:
            process = subprocess.Popen(
                [sys.executable, "-m", "llrag_cli", *arguments],
                cwd=folder,
                env=os.environ | environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # as after `nohup`
            )
            stack.enter_context(process)
        command = Command(process, folder, f"{name}={value}")
        try:
            yield command
        finally:
            for number in command.processes():
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def status_of(run: Path) -> str:
    status: str = json.loads((run / "run.json").read_text())["status"]
    return status


def require_unlocked(run: Path) -> None:
    with RunFolder(run).lock():
        pass


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_end_with_the_command(tmp_path: Path, starter: Starter, number: signal.Signals) -> None:
    runs = ("all/001-a-red-circle", "all/002-a-white-cross-passes-by")
    with running(tmp_path, *MANY, starter=starter) as command:
        command.wait_for_blocks(*runs)
        os.kill(command.process.pid, number)  # as a batch system does, which does not know the workers
        said = command.end()
    assert command.process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in said
    for run in runs:
        require_unlocked(tmp_path / run)
        assert status_of(tmp_path / run) == ("running" if number == signal.SIGKILL else "interrupted")
    if number != signal.SIGKILL:
        assert "the same command continues from here" in " ".join(said.split())
    done = call_llrag(tmp_path, *MANY, *HERE)
    assert done.returncode == 0, done.stderr
    for run in runs:
        record = json.loads((tmp_path / run / "run.json").read_text())
        assert record["status"] == "complete" and record["resumed_at"][0] >= 2


@pytest.mark.parametrize("number", SIGNALS)
def test_a_single_command_ends(tmp_path: Path, starter: Starter, number: signal.Signals) -> None:
    own = None if number == signal.SIGTERM else starter  # one Python is started, and ends, as those of users
    with running(tmp_path, *ONE, starter=own) as command:
        command.wait_for_blocks("run")
        os.kill(command.process.pid, number)
        said = command.end()
    assert command.process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in said
    require_unlocked(tmp_path / "run")
    assert status_of(tmp_path / "run") == ("running" if number == signal.SIGKILL else "interrupted")
    if number != signal.SIGKILL:
        assert "`llrag generate --resume run` continues from here" in " ".join(said.split())
        assert not list((tmp_path / "run").glob("*.part.mp4"))
    done = call_llrag(tmp_path, "generate", "--resume", "run")
    assert done.returncode == 0, done.stderr
    assert status_of(tmp_path / "run") == "complete"


def test_everything_may_be_told_to_stop(tmp_path: Path, starter: Starter) -> None:
    """systemd tells every process of a unit, ffmpeg included, and then tells them again."""
    with running(tmp_path, *MANY, starter=starter) as command:
        command.wait_for_blocks("all/001-a-red-circle", "all/002-a-white-cross-passes-by")
        everything = command.processes()
        for number in (signal.SIGTERM, signal.SIGHUP):
            for each in everything:
                with suppress(ProcessLookupError):
                    os.kill(each, number)
        said = command.end()
    assert command.process.returncode in (143, 129)  # whichever it hears of first
    assert "Traceback" not in said
    assert call_llrag(tmp_path, *MANY, *HERE).returncode == 0


def test_a_terminal_may_be_closed(tmp_path: Path, starter: Starter) -> None:
    ours, theirs = os.openpty()
    with running(tmp_path, *ONE, starter=starter, terminal=os.ttyname(theirs)) as command:
        os.set_blocking(ours, False)

        def begun() -> bool:
            with suppress(BlockingIOError):
                os.read(ours, 10**5)  # a full terminal would stop the command
            return RunFolder(tmp_path / "run").blocks_committed() >= 2

        wait_until(begun, command.process)
        os.close(theirs)
        os.close(ours)
        command.end()
    assert command.process.returncode == 129
    require_unlocked(tmp_path / "run")
    assert status_of(tmp_path / "run") == "interrupted"


def test_hangups_stay_ignored(tmp_path: Path) -> None:
    """As under `nohup`."""
    script = "import signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); " + (
        "from llrag_cli.signals import interrupts; import os\n"
        "with interrupts() as received: os.kill(os.getpid(), signal.SIGHUP)\n"
        "assert received == [] and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_second_signal_interrupts_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    from llrag_cli.signals import interrupts

    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    now = [100.0]
    monkeypatch.setattr("llrag_cli.signals.time.monotonic", lambda: now[0])
    with interrupts() as received:
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)  # part of the same request
        now[0] += 10
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert received == [signal.SIGTERM, signal.SIGHUP, signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    for number, handler in before.items():  # under nohup SIGHUP is ignored
        signal.signal(number, handler)
