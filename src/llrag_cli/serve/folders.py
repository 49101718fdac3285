"""The folder of runs on disk: what lies in it, under which identifiers, and who may generate in it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llrag_cli.files.durable import create_folder, sync_folder
from llrag_cli.serve.jobs import FILE

OURS = re.compile(r"(?:video|char)_[0-9a-f]{24}")
CHARACTER = "character.json"
_REMOVED = ".removed-"


def identifier_of(path: str) -> str:
    """The identifier of a run folder: its name if the server gave it, otherwise made of it."""
    return path if OURS.fullmatch(path) else f"run_{hashlib.sha256(path.encode()).hexdigest()[:24]}"


def run_folders(runs: Path) -> Iterator[tuple[str, Path]]:
    """The run folders, by identifier: direct ones, and those of takes and demos, which lie one deeper."""
    for path in _subfolders(runs):
        if path.name.startswith("."):
            continue
        if (path / FILE).is_file() or (path / "run.json").is_file():
            yield identifier_of(path.name), path
            continue
        for inner in _subfolders(path):
            if (inner / "run.json").is_file():
                yield identifier_of(f"{path.name}/{inner.name}"), inner


def sweep(runs: Path) -> None:
    """Remove what was not accepted or was being removed when an earlier server was killed."""
    for path in _subfolders(runs):
        refused = OURS.fullmatch(path.name) and not any(
            (path / name).exists() for name in (FILE, "run.json", CHARACTER)
        )
        if refused or path.name.startswith(_REMOVED):
            shutil.rmtree(path, ignore_errors=True)


def hide(folder: Path) -> Path:
    """Take a folder out of those that are listed, for good; returns where it is, to be removed."""
    hidden = folder.with_name(f"{_REMOVED}{folder.name}")
    folder.rename(hidden)
    sync_folder(folder.parent)
    return hidden


@contextmanager
def only_server(runs: Path) -> Iterator[None]:
    """Hold the lock of a folder of runs, so that no second server generates in it. Raises ``RunLockedError``."""
    from llrag_cli.files.locks import only_one

    create_folder(runs)
    with only_one(runs / ".serve.lock", writing=runs, owner="another server"):
        yield


def _subfolders(path: Path) -> list[Path]:
    """Folders in a folder, by name, no links; none if it cannot be read."""
    try:
        with os.scandir(path) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
