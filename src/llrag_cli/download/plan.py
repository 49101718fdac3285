"""The plan of a download: which files, their sizes and commits, where they go, and whether the disk has room."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants

from llrag_cli.download.catalogue import CatalogueFile, Source, alternatives
from llrag_cli.download.folder import existing_parent, read_record, target_path
from llrag_cli.download.hub import RemoteFile, list_files
from llrag_cli.download.problems import not_cached
from llrag_cli.download.web import size_on_web
from llrag_cli.errors import DownloadFolderError, DownloadSourceError
from llrag_cli.formatting import human

MARGIN = 1.05  # required free space over the size of a download


@dataclass(frozen=True)
class PlannedFile:
    """One file of a plan."""

    item: str
    repo: str
    url: str | None  # of a web server; None: the hub
    commit: str
    path: str  # in the repository
    target: Path  # after conversion
    spec: CatalogueFile
    licence: str
    bytes: int
    sha256: str | None  # or its first digits; None for small files, which the hub keeps in git
    blob: str | None  # their git blob id
    state: Literal["present", "cached", "missing"]


def plan(chosen: Iterable[tuple[str, Source]], folder: Path, *, dtype: str, force: bool = False) -> list[PlannedFile]:
    """Compare the files of the chosen items with those in the folder and in the hub's cache.

    Every repository is queried once (offline, the cache). Raises ``LlragError`` if one is not accessible or lacks a
    file.
    """
    chosen = list(chosen)
    record = read_record(folder)
    patterns: dict[tuple[str, str], list[str]] = {}
    for _, source in chosen:
        if source.url is None:
            patterns.setdefault((source.repo, source.revision), []).extend(spec.path for spec in source.files)
    listings = {repository: list_files(*repository, paths) for repository, paths in patterns.items()}
    planned = []
    for item, source in chosen:
        for spec in source.files:
            if source.url is None:
                files = _matching(listings[source.repo, source.revision], spec, source)
            else:
                files = [_on_web(source.url, spec, source, folder)]
            for file in files:
                target = target_path(folder, spec, file.path)
                entry = record.get(target.relative_to(folder).as_posix())
                sha256 = spec.sha256 or file.sha256
                known = entry is None or _same(entry, source, file, sha256=sha256, dtype=dtype)
                present = target.exists() and not force and known  # without an entry: placed by hand, never replaced
                planned.append(
                    PlannedFile(
                        item=item,
                        repo=source.repo,
                        url=source.url and f"{source.url}/{file.path}",
                        commit=file.commit,
                        path=file.path,
                        target=target,
                        spec=spec,
                        licence=source.licence,
                        bytes=file.bytes,
                        sha256=sha256,
                        blob=file.blob,
                        state="present" if present else "cached" if file.cached else "missing",
                    )
                )
    return planned


def _matching(files: Iterable[RemoteFile], spec: CatalogueFile, source: Source) -> list[RemoteFile]:
    matching = [file for file in files if fnmatch(file.path, spec.path)]
    if not matching and constants.HF_HUB_OFFLINE:
        raise not_cached(f"{source.repo}/{spec.path}")
    if not matching:
        raise DownloadSourceError(f"`{spec.path}` is not in `{source.repo}`", alternatives=alternatives(source.repo))
    return matching


def _on_web(base: str, spec: CatalogueFile, source: Source, folder: Path) -> RemoteFile:
    size = size_on_web(f"{base}/{spec.path}", target=target_path(folder, spec, spec.path))
    known = spec.bytes if size is None else size
    return RemoteFile(spec.path, source.revision, known, sha256=spec.sha256, blob=spec.blob, cached=False)


def _same(entry: Mapping[str, Any], source: Source, file: RemoteFile, *, sha256: str | None, dtype: str) -> bool:
    """Whether a recorded file is the planned one: the same content, stored in the same dtype."""
    if sha256:
        unchanged = (entry["sha256"] or "").startswith(sha256)
    else:
        unchanged = entry["commit"] == file.commit or (file.blob is not None and entry["blob"] == file.blob)
    same_file = (entry["repo"], entry["path"]) == (source.repo, file.path)
    return same_file and unchanged and entry["dtype"] in (None, dtype)


def require_room(planned: Iterable[PlannedFile], folder: Path, *, dtype: str) -> None:
    """Raise an error if the disks of the cache and the folder cannot hold what a plan downloads and converts."""
    converted = 0.5 if dtype in ("bfloat16", "float16") else 1.0
    needed: dict[int, tuple[Path, float]] = {}  # by device

    def add(path: Path, amount: float) -> None:
        parent = existing_parent(path)
        device = parent.stat().st_dev
        first, before = needed.get(device, (parent, 0.0))
        needed[device] = (first, before + amount)

    for file in planned:
        if file.state == "missing":
            add(folder if file.url else Path(constants.HF_HUB_CACHE), file.bytes)
        if file.state != "present" and file.spec.convert:
            add(folder, file.bytes * converted)
    for path, amount in needed.values():
        free = shutil.disk_usage(path).free
        if free < MARGIN * amount:
            raise DownloadFolderError(
                f"the download needs {human(MARGIN * amount)} on the disk of `{path}`, which has {human(free)} free",
                full=True,
            )
