"""What the command line advises about an error of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llrag_cli.errors import DownloadFolderError, DownloadSourceError, LlragError


def _another_source(error: DownloadSourceError) -> str:
    if not error.alternatives:
        return error.hint
    return f"{error.hint}; or try {' or '.join(f'`--source {name}`' for name in error.alternatives)}"


HINTS: dict[type[LlragError], Callable[[Any], str]] = {
    DownloadFolderError: lambda error: f"{error.hint} with `--to`",
    DownloadSourceError: _another_source,
}


def hint_for(error: LlragError) -> str:
    """The command line's own hint for an error, by its type; otherwise the error's."""
    for kind in type(error).__mro__:
        if kind in HINTS:
            return HINTS[kind](error)
    return error.hint
