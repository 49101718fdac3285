"""From names to a plan: which files, how large, from which commit, where to, and whether there is room for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from huggingface_hub import HfApi, constants, scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import CacheNotFound
from huggingface_hub.hf_api import RepoFile

from llrag_cli.download.catalogue import CatalogueFile, Source
from llrag_cli.download.problems import explained
from llrag_cli.download.web import Remote, on_the_web
from llrag_cli.errors import LlragError
from llrag_cli.files.durable import replace_text
from llrag_cli.formatting import human

RECORD = "downloads.json"  # in the weights folder: where each file came from
ROOM = 1.05  # of what a download needs, to have on the disk


@dataclass(frozen=True)
class Wanted:
    """One file of a plan."""

    item: str
    repo: str
    url: str | None  # where a web server has it; None: the hub has it
    commit: str
    path: str  # in the repository
    target: Path  # where it ends up, after conversion
    spec: CatalogueFile
    licence: str
    bytes: int
    sha256: str | None  # None for small files that the hub keeps in git
    state: Literal["present", "cached", "missing"]


def folder_record(folder: Path) -> dict[str, dict[str, Any]]:
    """Where the files of a weights folder came from, by path in it."""
    try:
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LlragError(
            f"`{folder / RECORD}` cannot be read: {error}", hint="remove it; files that are there stay as they are"
        ) from None
    return dict(content)


def plan(chosen: Iterable[tuple[str, Source]], folder: Path, *, dtype: str, force: bool = False) -> list[Wanted]:
    """Ask the hub (offline: its cache) what the chosen items consist of, and look at what is here.

    Raises ``LlragError`` in a sentence if a repository cannot be asked, or lacks a file.
    """
    record = folder_record(folder)
    trees: dict[tuple[str, str], tuple[str, dict[str, Remote]]] = {}
    wanted = []
    for name, source in chosen:
        for spec in source.files:
            key = (source.repo, source.revision)
            if source.url is not None:
                commit, files = (
                    source.revision,
                    {spec.path: on_the_web(source.url, spec, place(folder, spec, spec.path))},
                )
            elif key in trees:
                commit, files = trees[key]
            else:
                commit, files = trees[key] = _cached_tree(source) if constants.HF_HUB_OFFLINE else _tree(source)
            matching = {path: remote for path, remote in files.items() if fnmatch(path, spec.path)}
            if not matching:
                missing = f"`{spec.path}` is not in `{source.repo}`"
                if constants.HF_HUB_OFFLINE:
                    raise LlragError(
                        f"HF_HUB_OFFLINE is set, and {missing.replace('is not in', 'of')} is not in the hub's cache",
                        hint="unset it for the download, or bring the cache from a machine that has it",
                    )
                raise LlragError(
                    missing, hint="the repository has changed: try another `--source`, or a newer version of llrag"
                )
            for path, remote in sorted(matching.items()):
                target = place(folder, spec, path)
                entry = record.get(str(target.relative_to(folder)))
                wanted.append(
                    Wanted(
                        item=name,
                        repo=source.repo,
                        url=source.url and f"{source.url}/{path}",
                        commit=commit,
                        path=path,
                        target=target,
                        spec=spec,
                        licence=source.licence,
                        bytes=remote.bytes,
                        sha256=spec.sha256 or remote.sha256,
                        state=_state(target, entry, source, commit, path, spec, remote, dtype=dtype, force=force),
                    )
                )
    return wanted


def place(folder: Path, spec: CatalogueFile, path: str) -> Path:
    """Where a file of a repository goes; a converted checkpoint ends in ``.safetensors``."""
    target = folder / spec.to
    if spec.to.endswith("/"):
        return target / PurePosixPath(path).name
    return target.with_suffix(".safetensors") if spec.convert else target


def _state(
    target: Path,
    entry: Mapping[str, Any] | None,
    source: Source,
    commit: str,
    path: str,
    spec: CatalogueFile,
    remote: Remote,
    *,
    dtype: str,
    force: bool,
) -> Literal["present", "cached", "missing"]:
    by_hand = entry is None  # never replaced unless asked
    same = entry is not None and entry["repo"] == source.repo and entry["path"] == path
    if same and entry is not None:
        unchanged = entry["sha256"] == remote.sha256 if remote.sha256 else entry["commit"] == commit
        same = unchanged and entry["dtype"] in (None, dtype)
    if target.exists() and not force and (by_hand or same):
        return "present"
    if source.url is not None:
        return "missing"
    cached = try_to_load_from_cache(source.repo, path, revision=commit)
    return "cached" if isinstance(cached, str) and Path(cached).exists() else "missing"


def _tree(source: Source) -> tuple[str, dict[str, Remote]]:
    """The commit of a source and its files, from the hub."""
    with explained(source.repo):
        api = HfApi(library_name="llrag")
        commit = api.repo_info(source.repo, revision=source.revision).sha
        assert commit is not None
        files = {
            entry.path: Remote(entry.size, entry.lfs.sha256 if entry.lfs else None)
            for entry in api.list_repo_tree(source.repo, revision=commit, recursive=True)
            if isinstance(entry, RepoFile)
        }
    return commit, files


def _cached_tree(source: Source) -> tuple[str, dict[str, Remote]]:
    """As ``_tree``, from the newest revision that the hub's cache holds; nothing where it holds none."""
    try:
        repos = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return "", {}
    held = [revision for repo in repos if repo.repo_id == source.repo for revision in repo.revisions]
    if not held:
        return "", {}
    newest = max(held, key=lambda revision: (source.revision in revision.refs, revision.last_modified))
    files = {}
    for file in newest.files:
        path = Path(file.file_path).relative_to(newest.snapshot_path).as_posix()
        blob = Path(file.blob_path).name
        files[path] = Remote(file.size_on_disk, blob if len(blob) == 64 else None)
        if path.endswith(".index.json"):
            _require_shards(Path(file.file_path))
    return newest.commit_hash, files


def _require_shards(index: Path) -> None:
    """A model in pieces is there only when each piece is."""
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(shard for shard in shards if not (index.parent / shard).exists())
    if missing:
        raise LlragError(
            f"HF_HUB_OFFLINE is set, and `{missing[0]}` of `{index.name}` is not in the hub's cache",
            hint="unset it for the download, or bring the cache from a machine that has it",
        )


def write_record(folder: Path, wanted: Wanted, *, dtype: str | None) -> None:
    """Note in the weights folder where a file came from."""
    record = folder_record(folder)
    entry = {name: value for name, value in asdict(wanted).items() if name in ("repo", "commit", "path", "licence")}
    record[str(wanted.target.relative_to(folder))] = {**entry, "sha256": wanted.sha256, "dtype": dtype}
    text = json.dumps(record, indent=1, sort_keys=True) + "\n"
    replace_text(
        folder / RECORD,
        text,
        hint="make room or choose another folder with `--to`; what was fetched stays in the hub's cache",
    )


def require_room(wanted: Iterable[Wanted], folder: Path, *, dtype: str) -> None:
    """Raise an error, before a byte is fetched, if the disks cannot hold what a plan brings."""
    halved = 0.5 if dtype in ("bfloat16", "float16") else 1.0
    cache = Path(constants.HF_HUB_CACHE)
    needs: dict[int, tuple[Path, float]] = {}

    def need(place: Path, amount: float) -> None:
        there = _existing(place)
        device = there.stat().st_dev
        before = needs.get(device, (there, 0.0))
        needs[device] = (before[0], before[1] + amount)

    for file in wanted:
        if file.state == "missing":
            need(cache, file.bytes)
        if file.state != "present" and file.spec.convert:
            need(folder, file.bytes * halved)
    for there, amount in needs.values():
        free = shutil.disk_usage(there).free
        if free < ROOM * amount:
            raise LlragError(
                f"the download needs {human(ROOM * amount)} on the disk of `{there}`, which has {human(free)}",
                hint="make room, name another folder with `--to`, or move the hub's cache with HF_HOME",
            )


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
