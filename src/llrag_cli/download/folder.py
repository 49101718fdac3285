"""The folder that downloads go into: paths in it, the record of where files came from, and its lock."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout
from pydantic import RootModel

from llrag_cli.download.catalogue import CatalogueFile
from llrag_cli.errors import DownloadFolderError, LlragError, WriteFailedError
from llrag_cli.files.durable import create_folder, replace_text
from llrag_cli.files.guarded import UnreadableError, read_bytes, reason_of
from llrag_cli.files.records import Record, parse_as

RECORD = "downloads.json"
LOCK = "download.lock"


class DownloadRecord(Record):
    """Where a file came from."""

    repo: str
    commit: str
    path: str
    licence: str
    sha256: str | None
    blob: str | None = None  # git blob id; of a file that has no SHA-256 on the hub
    dtype: str | None


class _Downloads(RootModel[dict[str, DownloadRecord]]):
    """The content of ``downloads.json``."""


def target_path(folder: Path, spec: CatalogueFile, path: str) -> Path:
    """Path of a repository's file in the folder; a converted checkpoint ends in ``.safetensors``."""
    target = folder / spec.to
    if spec.to.endswith("/"):
        return target / PurePosixPath(path).name
    return target.with_suffix(".safetensors") if spec.convert else target


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """Where the files of a folder came from, by path in it."""
    try:
        content = parse_as(_Downloads, read_bytes(folder / RECORD)).root
    except FileNotFoundError:
        return {}
    except (OSError, UnreadableError) as error:
        raise LlragError(
            f"`{folder / RECORD}` cannot be read: {reason_of(error)}",
            hint="remove it; downloaded files are left as they are",
        ) from None
    return {path: entry.model_dump() for path, entry in content.items()}


def add_to_record(folder: Path, target: Path, entry: dict[str, str | None]) -> None:
    """Record where a file came from."""
    record = read_record(folder)
    record[target.relative_to(folder).as_posix()] = entry
    replace_text(folder / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")


def existing_parent(path: Path) -> Path:
    """The path itself, or the nearest parent that exists."""
    return next(parent for parent in (path, *path.absolute().parents) if parent.exists())


def require_writable(folder: Path) -> None:
    """Raise an error if files cannot be created in a folder, which need not exist yet."""
    with writing(folder):
        parent = existing_parent(folder)
    if not parent.is_dir():
        raise DownloadFolderError(f"`{folder}` cannot be created: `{parent}` is a file", full=False)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DownloadFolderError(f"`{folder}` cannot be written: permission denied", full=False)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise errors of writing to a path as ``DownloadFolderError``."""
    try:
        yield
    except WriteFailedError as error:
        raise DownloadFolderError(error.problem, full=True) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DownloadFolderError(f"`{path}` could not be written: {reason}", full=True) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create a folder and hold an exclusive lock on it; the OS releases the lock when the process ends."""
    lock = FileLock(folder / LOCK, mode=0o666)
    with writing(folder):
        create_folder(folder)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LlragError(
                f"another process is downloading into `{folder}`", hint="wait for it, or choose another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


def remove_stale(targets: Iterable[Path]) -> None:
    """Remove partial files of a killed download; the folder must be locked."""
    for target in targets:
        for partial in target.parent.glob(f"{target.name}.*partial"):
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink()
