"""Numbers and lists as people read and write them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llrag_cli.errors import UsageError


def human(amount: float) -> str:
    """Bytes as people read them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= scale:
            return f"{amount / scale:.3g} {unit}"
    return f"{amount:.0f} B"


def counted(count: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def parse_bytes(text: str) -> int:
    """``8GB``, ``500 MB`` or ``1.5e9`` as bytes; GB is 10**9, GiB 2**30."""
    match = re.fullmatch(r"\s*([0-9.]+(?:e\d+)?)\s*(?:([kmgt])(i?))?b?\s*", text, re.IGNORECASE)
    try:
        amount = float(match[1]) if match else 0.0
    except ValueError:
        amount = 0.0
    if match is None or not 1 <= amount < 2.0**64:
        raise UsageError(f"`{text}` is not an amount of memory", hint="for example `8GB` or `500MB`")
    power = 1 + "kmgt".index(match[2].lower()) if match[2] else 0
    return int(amount * (1024 if match[3] else 1000) ** power)
