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
