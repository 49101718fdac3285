"""The Hugging Face hub through ``huggingface_hub``: lists a repository, downloads a file into the cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import tqdm

from llrag_cli.download.problems import explained, not_cached
from llrag_cli.download.transfers import at_most, session
from llrag_cli.errors import LlragError
from llrag_cli.files.guarded import shortened
from llrag_cli.files.paths import is_inner_path
from llrag_cli.files.records import read_shards

Advance = Callable[[str, int], None]  # phase ("fetch", "check" or "convert"), bytes done since the last call


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded."""

    path: str  # in the repository
    commit: str
    bytes: int
    sha256: str | None  # None for small files, which the hub keeps in git
    blob: str | None  # their git blob id
    cached: bool


class _Silent(tqdm):
    """A progress bar of the client that draws nothing: the command line has its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]


def list_files(repo: str, revision: str, patterns: Sequence[str]) -> list[RemoteFile]:
    """The files of a repository that match a pattern; offline, those of its snapshot in the cache.

    Raises ``LlragError`` if the repository or one of the files is not accessible.
    """
    session()
    with explained(repo):
        if constants.HF_HUB_OFFLINE:
            snapshot = Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
            return _cached_files(snapshot, patterns)
        files = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(patterns),
            library_name="llrag",
            tqdm_class=_Silent,
            dry_run=True,
        )
        if not files:
            return []
        commit = files[0].commit_hash
        if any(file.commit_hash != commit for file in files) or (_is_commit(revision) and commit != revision):
            raise LlragError(f"`{repo}` changed while it was listed", hint="try again")
        paths = [file.filename for file in files]
        entries = HfApi(library_name="llrag").get_paths_info(repo, paths, revision=commit)  # a dry run has no hashes
        for entry in entries:
            if not is_inner_path(entry.path):
                raise LlragError(
                    f"`{repo}` lists a file that cannot be stored: {shortened(repr(entry.path))}",
                    hint="the repository is damaged or hostile; choose another source",
                )
    cached = {file.filename for file in files if file.is_cached}
    return [
        RemoteFile(
            entry.path,
            commit,
            entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            blob=None if entry.lfs else entry.blob_id,
            cached=entry.path in cached,
        )
        for entry in sorted(entries, key=lambda entry: entry.path)
        if isinstance(entry, RepoFile)
    ]


def _is_commit(revision: str) -> bool:
    return re.fullmatch("[0-9a-f]{40}", revision) is not None


def _cached_files(snapshot: Path, patterns: Sequence[str]) -> list[RemoteFile]:
    files = []
    for file in sorted(snapshot.rglob("*")):
        path = file.relative_to(snapshot).as_posix()
        if not file.is_file() or not any(fnmatch(path, pattern) for pattern in patterns):
            continue
        if path.endswith(".index.json"):
            _require_shards(file)
        name = file.readlink().name if file.is_symlink() else ""  # the SHA-256, or the git blob id
        sha256, blob = name if len(name) == 64 else None, name if len(name) == 40 else None
        files.append(RemoteFile(path, snapshot.name, file.stat().st_size, sha256=sha256, blob=blob, cached=True))
    return files


def _require_shards(index: Path) -> None:
    """Raise an error unless every shard of a model is in the cache."""
    shards = read_shards(index)
    missing = sorted(shard for shard in shards if not (index.parent / shard).exists())
    if missing:
        raise not_cached(f"{missing[0]}` of `{index.name}")


def remove_orphans(repo: str, digest: str) -> None:
    """Remove what killed processes left of a file in the hub's cache: its client begins again under another name.

    ``digest`` is the file's SHA-256 or git blob id. What another process is downloading, which holds a lock, stays.
    """
    name = repo_folder_name(repo_id=repo, repo_type="model")
    cache = Path(constants.HF_HUB_CACHE)
    orphans = [*(cache / name / "blobs").glob(f"{digest}.*incomplete")]
    if not orphans:
        return
    try:
        with FileLock(cache / ".locks" / name / f"{digest}.lock", timeout=0):
            for orphan in orphans:
                orphan.unlink(missing_ok=True)
    except (Timeout, OSError):
        return  # they cost room, but no download depends on them


def fetch_from_hub(repo: str, path: str, commit: str, *, size: int, advance: Advance) -> Path:
    """Path of a file in the hub's cache, downloaded if necessary.

    Raises ``LlragError`` if the hub sends the file of another commit, or more than ``size`` bytes and some room.
    """

    class Bar(_Silent):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            if kwargs.get("initial"):
                advance("fetch", kwargs["initial"])

        def update(self, n: float | None = 1) -> bool | None:
            advance("fetch", int(n or 0))
            return None

    session()
    with explained(repo, path), at_most(size):
        cached = Path(hf_hub_download(repo, path, revision=commit, library_name="llrag", tqdm_class=Bar))
    snapshot = cached.parents[len(PurePosixPath(path).parts) - 1].name
    if snapshot != commit:
        raise LlragError(
            f"`{repo}/{path}` changed after the download was planned: commit {snapshot[:12]}, not {commit[:12]}",
            hint="try again; complete files are kept",
        )
    return cached


def remove_from_cache(cached: Path) -> None:
    """Remove a file from the hub's cache: the snapshot's link, and what it points to."""
    link: Path | None = cached
    while link is not None:
        target = link.parent / link.readlink() if link.is_symlink() else None
        link.unlink(missing_ok=True)
        link = target
