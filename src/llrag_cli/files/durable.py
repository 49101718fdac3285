"""Atomic, fsynced writes: what was written survives a crash or a power cut."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError

from llrag_cli.errors import LlragError, WriteFailedError

HINT = "make room, or choose another folder; what was written before is kept"


def unwritten(path: Path, error: Exception, *, hint: str = HINT) -> WriteFailedError:
    """The error of a file that could not be written."""
    message = error.strerror if isinstance(error, OSError) else None
    reason = (message or str(error) or type(error).__name__).splitlines()[0].lower()
    return WriteFailedError(f"`{path}` could not be written: {reason}", hint=hint)


@contextmanager
def replacing(target: Path, *, hint: str = HINT) -> Iterator[Path]:
    """Yield a path for the new content; when the block ends, that file is synced and replaces ``target``.

    The new file has the default permissions of the umask, even if a library created it with fewer. After an error
    ``target`` is unchanged; disk errors, also from torch and safetensors, are raised as ``WriteFailedError``.
    """
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("ab"):
            mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors grants access to the owner only
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # otherwise a power cut could leave an empty file under the new name
        partial.replace(target)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise unwritten(target, error, hint=hint) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def replace_text(target: Path, text: str, *, hint: str = HINT) -> None:
    """Write a text file atomically, as ``replacing``."""
    with replacing(target, hint=hint) as partial, partial.open("wb", buffering=0) as file:
        _write(file.fileno(), text.encode())


class AppendFile:
    """An append-only file: after an error it ends with the last complete append.

    Opening truncates it to ``length`` bytes; a shorter file is an error.
    """

    def __init__(self, path: Path, *, length: int = 0) -> None:
        self.path = path
        self.length = length
        try:
            self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
            size = os.fstat(self._file.fileno()).st_size
            if size < length:
                raise LlragError(
                    f"`{path}` ends after {size} of {length} bytes", hint="it was changed since; restore it from a copy"
                )
            self._file.truncate(length)
            self._file.seek(length)
        except OSError as error:
            raise unwritten(path, error) from error

    def append(self, content: bytes) -> None:
        """Append bytes; they are on disk when this returns."""
        number = self._file.fileno()
        try:
            _write(number, content)
            os.fsync(number)
        except OSError as error:
            self._file.truncate(self.length)
            self._file.seek(self.length)
            raise unwritten(self.path, error) from error
        self.length += len(content)

    def overwrite(self, content: bytes) -> None:
        """Replace the first bytes of the file by ``content``."""
        try:
            self._file.seek(0)
            _write(self._file.fileno(), content)
            os.fsync(self._file.fileno())
        except OSError as error:
            raise unwritten(self.path, error) from error
        finally:
            self._file.seek(self.length)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> AppendFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _write(number: int, content: bytes) -> None:
    """Write all of ``content``; one call of ``os.write`` may write only a part."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(number, rest) :]
