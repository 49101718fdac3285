"""Executes a plan: downloads, checks, converts or links, and records every file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from llrag_cli.download.folder import RECORD, add_to_record, locked, remove_stale, writing
from llrag_cli.download.hub import Advance, fetch_from_hub, remove_from_cache, remove_orphans
from llrag_cli.download.plan import PlannedFile
from llrag_cli.download.web import fetch_from_web
from llrag_cli.errors import LlragError
from llrag_cli.files.durable import create_folder


def totals(planned: Sequence[PlannedFile]) -> dict[str, int]:
    """Bytes that each phase of ``fetch`` handles."""
    pending = [file for file in planned if file.state != "present"]
    return {
        "fetch": sum(file.bytes for file in pending if file.state == "missing"),
        "check": sum(file.bytes for file in pending),
        "convert": sum(file.bytes for file in pending if file.spec.convert is not None),
    }


def fetch(planned: Sequence[PlannedFile], folder: Path, *, dtype: str, prune: bool, advance: Advance) -> None:
    """Bring every file of a plan that is not present into the folder.

    When interrupted, complete files are kept and no incomplete file has a final name.
    """
    with locked(folder):
        remove_stale([folder / RECORD, *(file.target for file in planned)])
        for file in planned:
            if file.state != "present":
                _fetch_one(file, folder, dtype=dtype, prune=prune, advance=advance)


def _fetch_one(file: PlannedFile, folder: Path, *, dtype: str, prune: bool, advance: Advance) -> None:
    with writing(file.target):
        create_folder(file.target.parent)
    if file.url is None:
        if digest := file.sha256 or file.blob:
            remove_orphans(file.repo, digest)
        source = fetch_from_hub(file.repo, file.path, file.commit, size=file.bytes, advance=advance)
    else:
        source = file.target.with_name(f"{file.target.name}.partial")
        fetch_from_web(file.url, source, size=file.bytes, advance=advance)
    sha256 = check(file, source, advance=advance)
    with writing(file.target):
        if file.url is not None:
            source.replace(file.target)
        elif file.spec.convert is None:
            link(source, file.target)
        else:
            from llrag_cli.download.convert import convert

            convert(source, file.target, kind=file.spec.convert, ema=file.spec.ema, dtype=dtype)
            advance("convert", file.bytes)
        entry = {
            "repo": file.repo,
            "commit": file.commit,
            "path": file.path,
            "licence": file.licence,
            "sha256": sha256,
            "blob": file.blob,
            "dtype": dtype if file.spec.convert in ("generator", "lora") else None,
        }
        add_to_record(folder, file.target, entry)
    if prune and file.spec.convert is not None:
        remove_from_cache(source)


def check(file: PlannedFile, path: Path, *, advance: Advance) -> str:
    """Compare size, SHA-256 and git blob id with the expected ones, and return the SHA-256.

    Raises ``LlragError`` for a file that differs, which is removed.
    """
    size = path.stat().st_size
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    problem = f"has {size} bytes, not {file.bytes}" if size != file.bytes else None
    if problem is None:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 24):
                sha256.update(chunk)
                if file.blob is not None:
                    blob.update(chunk)
                advance("check", len(chunk))
        for name, found, expected in (
            ("SHA-256", sha256.hexdigest(), file.sha256),
            ("git blob id", blob.hexdigest(), file.blob),
        ):
            if expected is not None and not found.startswith(expected):
                problem = f"has {name} {found[:12]}…, not {expected[:12]}…"
    if problem is not None:
        remove_from_cache(path)
        raise LlragError(
            f"`{file.repo}/{file.path}` is damaged: it {problem}", hint="it was removed; download it again"
        )
    return sha256.hexdigest()


def link(cached: Path, target: Path) -> None:
    """Make a file of the cache available as ``target``, by a hard link or else a symbolic one."""
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    blob = cached.resolve()
    try:
        os.link(blob, partial)
    except OSError:
        partial.symlink_to(blob)
    partial.replace(target)
    partial.unlink(missing_ok=True)  # renaming a hard link to another one of the same file leaves both
