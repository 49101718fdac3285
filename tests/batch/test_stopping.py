"""However a command is stopped, nothing stays behind: no process, no lock, and the same command continues."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import termios
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from conftest import call_llrag
from llrag_cli.runs.folder import RunFolder
from waiting import wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
FEW = ("--seconds", "24", "--set", "sampler.steps=[1000, 500]", "--backbone", "tiny")
PROMPTS = "a red circle\na white cross passes by\n"
MANY = ("generate", "--prompts", "prompts.txt", "--out", "all", "--engine", "local:2", *FEW)
HERE = ("--engine", "local")  # which is faster, once it is known that workers continue too
ONE = ("generate", "a red circle", "--out", "run", *FEW)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Command:
    """A command that runs, and everything that it started."""

    process: subprocess.Popen[str]
    folder: Path
    mark: str  # in the environment of the process, and of all that it starts

    def processes(self) -> list[int]:
        """Those that live, also if their parent does not."""
        found = []
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if self.mark.encode() in file.read_bytes():
                    found.append(int(file.parent.name))
        return found

    def end(self) -> str:
        """What it wrote to stderr, once nothing of it is left."""
        _, said = self.process.communicate()  # ends when the last process lets go of its stderr
        wait_until(lambda: not self.processes())
        return said

    def wait_for_blocks(self, *runs: str) -> None:
        """Wait until every run has committed blocks and is encoding video."""

        def begun() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            folders = [self.folder / run for run in runs]
            return all(
                RunFolder(folder).blocks_committed() >= 2 and list(folder.glob("*.part.mp4")) for folder in folders
            )

        wait_until(begun)


@contextmanager
def running(folder: Path, *arguments: str, terminal: int | None = None) -> Iterator[Command]:
    """A command in a session of its own; nothing of it outlives the test."""
    (folder / "prompts.txt").write_text(PROMPTS)
    mark = f"LLRAG_TEST_MARK={uuid.uuid4()}"
    name, value = mark.split("=")

    def prepare() -> None:
        for each in (signal.SIGINT, signal.SIGHUP):  # background jobs of a shell ignore them
            signal.signal(each, signal.SIG_DFL)
        if terminal is not None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        [sys.executable, "-m", "llrag_cli", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", name: value},
        stdin=terminal,
        stdout=subprocess.DEVNULL if terminal is None else terminal,
        stderr=subprocess.PIPE if terminal is None else terminal,
        text=True,
        start_new_session=True,
        preexec_fn=prepare,
    )
    command = Command(process, folder, mark)
    try:
        yield command
    finally:
        for number in command.processes():
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def status_of(run: Path) -> str:
    status: str = json.loads((run / "run.json").read_text())["status"]
    return status


def require_unlocked(run: Path) -> None:
    with RunFolder(run).lock():
        pass


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_end_with_the_command(tmp_path: Path, number: signal.Signals) -> None:
    runs = ("all/001-a-red-circle", "all/002-a-white-cross-passes-by")
    with running(tmp_path, *MANY) as command:
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
    done = call_llrag(tmp_path, *MANY, *(() if number == signal.SIGKILL else HERE))
    assert done.returncode == 0, done.stderr
    for run in runs:
        record = json.loads((tmp_path / run / "run.json").read_text())
        assert record["status"] == "complete" and record["resumed_at"][0] >= 2


@pytest.mark.parametrize("number", SIGNALS)
def test_a_single_command_ends(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, *ONE) as command:
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


def test_everything_may_be_told_to_stop(tmp_path: Path) -> None:
    """systemd tells every process of a unit, ffmpeg included, and then tells them again."""
    with running(tmp_path, *MANY) as command:
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


def test_a_terminal_may_be_closed(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    with running(tmp_path, *ONE, terminal=theirs) as command:
        os.close(theirs)
        os.set_blocking(ours, False)

        def begun() -> bool:
            with suppress(BlockingIOError):
                os.read(ours, 10**5)  # a full terminal would stop the command
            return RunFolder(tmp_path / "run").blocks_committed() >= 2

        wait_until(begun)
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
