"""Files that are replaced in one step: whole, or as they were before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from llrag_cli.errors import LlragError


@contextmanager
def replacing(target: Path, *, hint: str) -> Iterator[Path]:
    """Gives the path to write the new content to; when the block ends, it is on disk and takes ``target``'s place.

    What goes wrong leaves an earlier ``target`` as it was; what the disk has to say against it (also through torch and
    safetensors) becomes an ``LlragError`` with the hint.
    """
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # or a power cut could leave the new name with nothing behind it
        partial.replace(target)
    except (OSError, SafetensorError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise LlragError(f"`{target}` could not be written: {_reason(error)}", hint=hint) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def replace_text(target: Path, text: str, *, hint: str) -> None:
    """Write a text file in one step, as ``replacing``."""
    with replacing(target, hint=hint) as partial:
        partial.write_text(text, encoding="utf-8")


def _reason(error: Exception) -> str:
    told = error.strerror if isinstance(error, OSError) else None
    return (told or str(error) or type(error).__name__).splitlines()[0].lower()
