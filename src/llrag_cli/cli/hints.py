"""What the command line advises about an error of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llrag_cli.errors import (
    CollectionDiffersError,
    FolderNotEmptyError,
    LlragError,
    NotARunError,
    OutOfMemoryError,
    RunDiffersError,
    RunExistsError,
    RunLengthError,
    RunLockedError,
    UnwritableError,
)

HINTS: dict[type[LlragError], Callable[[Any], str]] = {
    UnwritableError: lambda error: "choose another folder with `--out`",
    RunExistsError: lambda error: (
        f"`llrag generate --resume {error.path}` continues it; or choose another `--out`, or replace it with `--force`"
    ),
    FolderNotEmptyError: lambda error: (
        "choose another `--out`, or add `--force`: files that do not belong to a run are left alone"
    ),
    RunLockedError: lambda error: "wait until it has finished, or choose another `--out`",
    NotARunError: lambda error: "give a folder that `llrag generate` created",
    RunDiffersError: lambda error: (
        "leave them out to resume the run with its own settings, choose another `--out`, or replace it with `--force`"
    ),
    RunLengthError: lambda error: "`--seconds` can only be longer",
    OutOfMemoryError: lambda error: (
        "a cheaper `--archive`, `--offload` or a smaller `--memory-budget` needs less memory; finished blocks are "
        f"kept, `llrag generate --resume {error.path}` continues the run"
    ),
    CollectionDiffersError: lambda error: "choose another `--out`, or repeat the command that started it",
}


def hint_for(error: LlragError) -> str:
    """The command line's own hint for an error, by its type; otherwise the error's."""
    for kind in type(error).__mro__:
        if kind in HINTS:
            return HINTS[kind](error)
    return error.hint
