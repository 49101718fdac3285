"""Prompts from a text file, one per line."""

from __future__ import annotations

from pathlib import Path

from llrag_cli.errors import UsageError


def read_prompt_file(file: Path) -> list[str]:
    """The prompts of a file, one per line; blank lines and lines that start with ``#`` are skipped."""
    hint = "it is a text file with one prompt per line"
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UsageError(f"no prompt file `{file}`", hint=hint) from None
    except (OSError, ValueError) as error:
        reason = (error.strerror or "").lower() if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"`{file}` cannot be read: {reason}", hint=hint) from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not prompts:
        raise UsageError(f"`{file}` contains no prompt", hint="write one prompt per line")
    return prompts
