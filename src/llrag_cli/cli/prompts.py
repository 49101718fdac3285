"""What the backbone makes of prompts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from llrag_cli.errors import UsageError

if TYPE_CHECKING:
    from llrag_cli.config import RunConfig


def require_understood(config: RunConfig, prompts: Iterable[str]) -> None:
    """Raise an error for a prompt of which the backbone understands nothing."""
    from llrag_cli.models.family import family_of

    for prompt in prompts:
        reading = family_of(config).read_prompt(prompt)
        if prompt and reading is not None and not reading.understood:  # references have no prompt
            raise UsageError(
                f"`{config.name}` understands nothing of `{prompt if len(prompt) <= 80 else prompt[:77] + '...'}`",
                hint="it draws coloured shapes on a wall: `llrag presets show tiny` has its words; "
                "for other prompts choose a Wan backbone with `--backbone`",
            )


def show_readings(config: RunConfig, prompts: Iterable[str], *, only_incomplete: bool = False) -> None:
    """Print a line for each prompt: what is understood, what is ignored, and what cannot be drawn."""
    from llrag_cli.cli import console
    from llrag_cli.models.family import family_of

    for prompt in dict.fromkeys(filter(None, prompts)):
        reading = family_of(config).read_prompt(prompt)
        if reading is not None and not (only_incomplete and reading.complete):
            console.note(reading.sentence())
