"""Standard streams that stop no command: what it makes is worth more than what it prints about it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class ForgivingStream:
    """A text stream that drops what cannot be written; ``lost`` is the error after which it does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Hand on what was written, or drop it."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, action: Callable[[], object]) -> None:
        if self.lost is not None:
            return
        try:
            action()
        except OSError as error:
            self.lost = error
            _discard(self._stream)


@contextmanager
def forgiving_streams() -> Iterator[Callable[[], OSError | None]]:
    """Within this context stdout and stderr are forgiving, and print characters that they lack as escapes.

    Yields a function that returns why results could not be printed to stdout; None if they were, or if their reader
    has left, as ``head`` does.
    """
    _open_closed()
    before = sys.stdout, sys.stderr
    out, err = (ForgivingStream(_escaping(stream)) for stream in before)
    sys.stdout, sys.stderr = out, err

    def lost() -> OSError | None:
        out.flush()
        return None if out.lost is None or out.lost.errno == errno.EPIPE else out.lost

    try:
        yield lost
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def _escaping(stream: TextIO | None) -> TextIO:
    """The stream, which escapes characters that its encoding lacks; for a closed one, a stream that prints nothing."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - open as long as the process
    if stream.errors == "strict":
        with suppress(AttributeError):  # streams that are no files
            stream.reconfigure(errors="backslashreplace")  # type: ignore[attr-defined]
    return stream


def _open_closed() -> None:
    """Open the standard descriptors that are closed, so that no file of ours becomes stdin, stdout or stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one


def _discard(stream: TextIO) -> None:
    """Let a stream write to nowhere: what it still holds would otherwise be an error when Python exits."""
    with suppress(OSError, ValueError):  # streams that are no files
        number, null = stream.fileno(), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
