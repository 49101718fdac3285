"""Where things lie on this machine."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath


def cache_folder() -> Path:
    """llrag's own folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llrag"


def weights_folder() -> Path:
    """Where downloaded weights lie: LLRAG_WEIGHTS, or ``llrag/weights`` in the user's cache."""
    if os.environ.get("LLRAG_WEIGHTS"):
        return Path(os.environ["LLRAG_WEIGHTS"])
    return cache_folder() / "weights"


def is_file_name(name: str) -> bool:
    """Whether a text names a file in the same folder, on any system."""
    plain = name not in ("", ".", "..") and not any(each in name for each in "/\\\0")
    return plain and len(name.encode(errors="replace")) <= 255


def is_inner_path(path: str) -> bool:
    """Whether a text is the path of a file below the folder that it starts at: no `..`, and no root."""
    return bool(path) and all(is_file_name(part) for part in path.split("/")) and not PurePosixPath(path).is_absolute()
