"""Errors that the user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


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


class MissingMetricModelError(LlragError):
    """The official backend lacks a file of one of its models."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"the official backend lacks a model: there is no `{path}`",
            hint="fetch its models into the weights folder, or use the backend `offline`, which needs none",
        )
        self.path = path


class InvalidMetricModelError(LlragError):
    """A file of the official backend is damaged or holds another model."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem, hint="replace it with the released file")


class LlragWarning(UserWarning):
    """A result may differ from what was meant."""


def closest(name: str, names: Iterable[str]) -> str:
    """A hint with the nearest valid name, or all of them."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"one of {', '.join(f'`{each}`' for each in known)}"
