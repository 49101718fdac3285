"""Prompts from a text file, one per line."""

from __future__ import annotations

from pathlib import Path

from llrag_cli.errors import UsageError
from llrag_cli.files.guarded import MEGABYTE, decoded, read_bytes, reason_of, require_text

LIMIT = 64 * MEGABYTE  # bytes of a file
LONGEST = 20_000  # characters of a prompt


def read_prompt_file(file: Path) -> list[str]:
    """The prompts of a file, one per line; blank lines and lines that start with ``#`` are skipped."""
    hint = "it is a text file with one prompt per line"
    try:
        text = decoded(read_bytes(file, limit=LIMIT))
        require_text(text)
        lines = text.splitlines()
    except FileNotFoundError:
        raise UsageError(f"no prompt file `{file}`", hint=hint) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"`{file}` cannot be read: {reason_of(error)}", hint=hint) from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if (long := next((number for number, prompt in enumerate(prompts, 1) if len(prompt) > LONGEST), None)) is not None:
        raise UsageError(f"prompt {long} of `{file}` has more than {LONGEST} characters", hint=hint)
    if not prompts:
        raise UsageError(f"`{file}` contains no prompt", hint="write one prompt per line")
    return prompts
