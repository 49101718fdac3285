"""What the command line advises about an error of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llrag_cli.errors import InvalidMetricModelError, LlragError, MissingMetricModelError

HINTS: dict[type[LlragError], Callable[[Any], str]] = {
    InvalidMetricModelError: lambda error: "`llrag download metrics --force` fetches the released files again",
    MissingMetricModelError: lambda error: (
        "`llrag download metrics` fetches them; LLRAG_WEIGHTS names the weights folder; "
        "`--backend offline` needs no download"
    ),
}


def hint_for(error: LlragError) -> str:
    """The command line's own hint for an error, by its type; otherwise the error's."""
    for kind in type(error).__mro__:
        if kind in HINTS:
            return HINTS[kind](error)
    return error.hint
