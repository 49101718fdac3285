"""What a user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlragError(Exception):
    """A problem in one sentence, and a hint at what to do about it."""

    exit_code = 1

    def __init__(self, problem: str, *, hint: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint


class UsageError(LlragError):
    """The command line, a preset or a prompt file asks for something that cannot be."""

    exit_code = 2


def closest(name: str, names: Iterable[str]) -> str:
    """A hint with the nearest valid name, or all of them."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"one of {', '.join(f'`{each}`' for each in known)}"
