"""Errors that the user can fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal


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


class MissingWeightsError(LlragError):
    """A file of a configuration's weights is not there."""

    def __init__(self, config: str, path: Path, *, setting: str, checkpoint: str | None) -> None:
        super().__init__(
            f"the weights of `{config}` are incomplete: `{path}` does not exist (setting `{setting}`)",
            hint="download the weights; LLRAG_WEIGHTS names the folder they are in",
        )
        self.path = path
        self.setting = setting
        self.checkpoint = checkpoint  # the configuration's transformer, in the weights folder


class DamagedFileError(LlragError):
    """A file of weights that cannot be read."""

    def __init__(self, path: Path, reason: str, *, kind: str = "a checkpoint") -> None:
        super().__init__(
            f"`{path}` cannot be read as {kind}: {reason}",
            hint="the file is damaged, incomplete or of another kind; download it again",
        )
        self.path = path


class UnsupportedModelError(LlragError):
    """A model of a shape that llrag cannot run."""

    def __init__(self, source: str, reason: str, *, hint: str) -> None:
        super().__init__(f"`{source}` is not supported: {reason}", hint=hint)


class AttentionError(LlragError):
    """An attention backend that does not work on this machine."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"the attention backend `{name}` does not work here: {reason}",
            hint="install what it needs, or use `native`",
        )
        self.name = name


Remedy = Literal["shorter", "archive", "offload", "window", "smaller"]


class DoesNotFitError(LlragError):
    """A run needs more memory or disk space than there is.

    ``remedies`` would help, the most effective first; ``tiers`` are the archives that take less room.
    """

    def __init__(self, problem: str, *, remedies: Sequence[Remedy], tiers: Sequence[str] = ()) -> None:
        words: dict[Remedy, str] = {
            "shorter": "make a shorter video, or use a memory without retrieval, which keeps no archive",
            "archive": f"set `memory.archive` to {' or '.join(f'`{tier}`' for tier in tiers)}",
            "offload": "keep the weights on the host",
            "window": "shorten the window with `memory.window` and `memory.retrieved`",
            "smaller": "make the picture smaller with `backbone.height` and `backbone.width`",
        }
        super().__init__(problem, hint="; ".join(words[remedy] for remedy in remedies))
        self.remedies = tuple(remedies)
        self.tiers = tuple(tiers)


class LlragWarning(UserWarning):
    """A result may differ from what was meant."""


def closest(name: str, names: Iterable[str]) -> str:
    """A hint with the nearest valid name, or all of them."""
    known = sorted(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean `{near[0]}`?" if near else f"one of {', '.join(f'`{each}`' for each in known)}"
