"""Where things lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """llrag's own folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llrag"


def weights_folder() -> Path:
    """Where downloaded weights lie: LLRAG_WEIGHTS, or ``llrag/weights`` in the user's cache."""
    if os.environ.get("LLRAG_WEIGHTS"):
        return Path(os.environ["LLRAG_WEIGHTS"])
    return cache_folder() / "weights"


def human(amount: float) -> str:
    """Bytes as people read them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= scale:
            return f"{amount / scale:.3g} {unit}"
    return f"{amount:.0f} B"


def counted(count: int, noun: str) -> str:
    """``1 file``, ``2 files``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
