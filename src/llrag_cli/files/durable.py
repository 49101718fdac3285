"""Atomic, fsynced writes: what was written survives a crash or a power cut."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from safetensors import SafetensorError

from llrag_cli.errors import LinkedFileError, LlragError, UsageError, WriteFailedError

HINT = "make room, or choose another folder; what was written before is kept"
NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # flags of files that are opened


def require_own(path: Path, *, folder: bool = False) -> None:
    """Raise an error if a path is a symbolic link, a pipe or a device, or a folder unless it may be one.

    It need not exist. A folder from elsewhere could otherwise lead to any file of this machine. Links among the parents
    are allowed.
    """
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):
        return  # whoever opens it reports why it cannot be opened
    if stat.S_ISLNK(mode):
        raise LinkedFileError(path, str(path.readlink()))
    if stat.S_ISDIR(mode) and not folder:
        raise UsageError(f"`{path}` is a folder, not a file", hint="remove it, or choose another folder")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(f"`{path}` is not a regular file", hint="remove it, or choose another folder")


def unwritten(path: Path, error: Exception, *, hint: str = HINT) -> WriteFailedError:
    """The error of a file that could not be written."""
    message = error.strerror if isinstance(error, OSError) else None
    reason = (message or str(error) or type(error).__name__).splitlines()[0].lower()
    return WriteFailedError(f"`{path}` could not be written: {reason}", hint=hint)


@contextmanager
def replacing(target: Path, *, hint: str = HINT) -> Iterator[Path]:
    """Yield a path for the new content; when the block ends, that file is synced and replaces ``target``.

    A ``target`` that is a link is an error. The new file has the default permissions of the umask, even if a library
    created it with fewer. After an error ``target`` has its old content, or the new one if only the folder could not
    be synced; disk errors, also from torch and safetensors, are raised as ``WriteFailedError``.
    """
    require_own(target)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)  # left by an earlier process of the same number
        number = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_LINK, 0o666)
        mode = os.fstat(number).st_mode
        os.close(number)
        yield partial
        partial.chmod(mode)  # safetensors grants access to the owner only
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # otherwise a power cut could leave an empty file under the new name
        partial.replace(target)
        sync_folder(target.parent)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise unwritten(target, error, hint=hint) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Write the names in a folder to disk, so that creating, renaming and removing files survives a power cut."""
    if os.name == "nt":
        return  # Windows has no such call
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot, and need not
            raise
    finally:
        os.close(number)


def create_folder(path: Path) -> None:
    """Create a folder and its parents unless they exist; they survive a power cut. Raises ``OSError``."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync_folder(folder.parent)


def remove_files(folder: Path, names: Sequence[str]) -> None:
    """Remove files of a folder, if they exist; after a power cut none of them is back. Raises ``OSError``."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    sync_folder(folder)


def replace_text(target: Path, text: str, *, hint: str = HINT) -> None:
    """Write a text file atomically, as ``replacing``."""
    replace_bytes(target, text.encode(), hint=hint)


def replace_bytes(target: Path, content: bytes, *, hint: str = HINT) -> None:
    """Write a file atomically, as ``replacing``."""
    with replacing(target, hint=hint) as partial, partial.open("wb", buffering=0) as file:
        _write(file.fileno(), content)


class AppendFile:
    """An append-only file: after an error it ends with the last complete append.

    Opening truncates it to ``length`` bytes; a shorter file is an error, and so is a link.
    """

    def __init__(self, path: Path, *, length: int = 0) -> None:
        self.path = path
        self.length = length
        require_own(path)
        try:
            self._file = open(os.open(path, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666), "r+b", buffering=0)  # noqa: PTH123, SIM115
            size = os.fstat(self._file.fileno()).st_size
            if size < length:
                raise LlragError(
                    f"`{path}` ends after {size} of {length} bytes", hint="it was changed since; restore it from a copy"
                )
            os.ftruncate(self._file.fileno(), length)
            self._file.seek(length)
            sync_folder(path.parent)
        except OSError as error:
            raise unwritten(path, error) from error

    def append(self, content: bytes) -> None:
        """Append bytes; they are on disk when this returns."""
        number = self._file.fileno()
        try:
            _write(number, content)
            os.fsync(number)
        except OSError as error:
            os.ftruncate(number, self.length)
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
