"""Exclusive locks, which the operating system releases when their process ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llrag_cli.errors import RunLockedError


@contextmanager
def only_one(lock: Path, *, writing: Path, owner: str = "another process") -> Iterator[None]:
    """Hold a lock file, so that nobody else is ``writing`` the same meanwhile.

    Raises ``RunLockedError``, which names the ``owner``, if another process holds it.
    """
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise RunLockedError(writing, owner) from None
    try:
        yield
    finally:
        held.release()
