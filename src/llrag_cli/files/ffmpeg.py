"""Where ffmpeg is, how files are named to it, and how long it may take."""

from __future__ import annotations

import subprocess
from collections.abc import Generator, Sequence
from inspect import getgeneratorlocals
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType
from typing import IO, Any

from llrag_cli.errors import LlragError

PATIENCE = 120  # seconds in which ffmpeg must take or give the next frames, or begin
SECONDS_PER_MEGABYTE = 60  # of a file that it reads, in addition, for all of it
TICK = 1.0  # seconds


def file_url(path: str | Path) -> str:
    """A path as ffmpeg takes it, for reading and writing.

    It is absolute and names the protocol: the colon of a relative ``pink:7/video.mp4`` would end the name of a
    protocol, and a leading dash would make it an option.
    """
    return f"file:{Path(path).absolute()}"


def ffmpeg() -> str:
    """Path of the ffmpeg program."""
    import imageio_ffmpeg

    try:
        executable: str = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise LlragError(
            "ffmpeg not found", hint="reinstall imageio-ffmpeg, or set the variable IMAGEIO_FFMPEG_EXE to its path"
        ) from None
    if not Path(executable).exists() and "/" in executable:
        raise LlragError(f"ffmpeg not found at `{executable}`", hint="correct or unset the variable IMAGEIO_FFMPEG_EXE")
    return executable


def run_ffmpeg(
    arguments: Sequence[str], *, reading: Path, stdin: IO[bytes] | None = None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Let ffmpeg read a file, to its end.

    ``stdin`` is a file that is its standard input, or else ``text``. Raises ``LlragError`` if it takes far longer than
    a file of this size can.
    """
    limit = PATIENCE + SECONDS_PER_MEGABYTE * reading.stat().st_size / 2**20
    given: dict[str, Any] = {"input": text.encode()} if stdin is None else {"stdin": stdin}  # bytes: `\n` stays `\n`
    command = [ffmpeg(), *arguments]
    try:
        done = subprocess.run(command, **given, capture_output=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise LlragError(
            f"ffmpeg did not come to the end of `{reading}` within {limit:.0f} seconds",
            hint="is the disk very slow, or the file damaged?",
        ) from None
    stdout, stderr = (stream.decode(errors="replace") for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(command, done.returncode, stdout, stderr)


def process_of(generator: Generator[Any, Any, Any]) -> subprocess.Popen[bytes]:
    """The process of a generator of imageio-ffmpeg that has begun."""
    return next(each for each in getgeneratorlocals(generator).values() if isinstance(each, subprocess.Popen))


class Watch:
    """Kills a process that keeps us waiting for more than ``PATIENCE`` seconds: we wait in its ``with`` blocks.

    Time is counted in ticks of this process, so that one that was suspended does not kill its ffmpeg.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.late = False  # the process was killed
        self._waited: float | None = None  # None: nobody is waiting
        self._lock = Lock()
        Thread(target=self._watch, name="ffmpeg", daemon=True).start()

    def __enter__(self) -> None:
        with self._lock:
            self._waited = 0.0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._waited = None

    def _watch(self) -> None:
        while True:
            try:
                self.process.wait(TICK)
            except subprocess.TimeoutExpired:
                pass
            else:
                return
            with self._lock:
                if self._waited is None:
                    continue
                self._waited += TICK
                if self._waited > PATIENCE:
                    self.late = True
                    self.process.kill()
                    return

    @property
    def death(self) -> str | None:
        """How the process ended, if it was killed; call it when nothing is left to wait for."""
        if self.late:
            return f"ffmpeg did not respond for {PATIENCE} seconds"
        try:
            code = self.process.wait(TICK)
        except subprocess.TimeoutExpired:
            return None
        return f"ffmpeg was killed by signal {-code}" if code < 0 else None
