"""Errors that the user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlragError(Exception):
    """A problem in one sentence, and a hint at how to solve it (empty where there is none).

    Hints of the library speak of files, packages and settings. A front end may word its own for a subclass.
    """

    def __init__(self, problem: str, *, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


class UsageError(LlragError):
    """An invalid request: an unknown name, a value out of range, a file that is not what it should be."""


class ArchiveError(LlragError):
    """Memory or disk for the archive cannot be reserved."""


class NotFiniteError(LlragError):
    """A block of latents has NaN or infinite values."""


class WriteFailedError(LlragError):
    """A file that could not be written completely: the disk is full, or the write failed."""


class DownloadFolderError(LlragError):
    """The folder of a download is not writable, or (``full``) a disk may be too small."""

    def __init__(self, problem: str, *, full: bool) -> None:
        alternative = "free some space, move the hub's cache with HF_HOME, or " if full else ""
        super().__init__(problem, hint=f"{alternative}choose another folder")
        self.full = full


class DownloadSourceError(LlragError):
    """A repository that does not exist or lacks a file; ``alternatives`` names other sources of the same items."""

    def __init__(self, problem: str, *, alternatives: tuple[str, ...], hint: str = "") -> None:
        super().__init__(problem, hint=hint or "the repository has changed; update llrag")
        self.alternatives = alternatives


class LlragWarning(UserWarning):
    """A result may differ from what was meant."""


def closest(name: str, names: Iterable[str]) -> str:
    """A hint with the nearest valid name, or all of them."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"one of {', '.join(f'`{each}`' for each in known)}"
