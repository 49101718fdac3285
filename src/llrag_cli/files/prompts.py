"""Prompts from a text file, one a line."""

from __future__ import annotations

from pathlib import Path

from llrag_cli.errors import UsageError


def read_prompt_file(file: Path) -> list[str]:
    """The lines of a file that are not blank; a file without any is an error."""
    hint = "it is a text file, one prompt a line"
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise UsageError(f"there is no prompt file `{file}`", hint=hint) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else (error.strerror or "").lower()
        raise UsageError(f"`{file}` cannot be read: {reason}", hint=hint) from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"`{file}` holds no prompt", hint="write one prompt a line")
    return prompts
