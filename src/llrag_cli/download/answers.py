"""What the hub answers, checked before its client uses it: names from it become paths in the cache."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants

from llrag_cli.errors import LlragError
from llrag_cli.files.guarded import UnreadableError, parse_json, shortened
from llrag_cli.files.paths import is_inner_path

COMMIT = re.compile("[0-9a-f]{40}")
ETAG = re.compile(r'(W/)?"?[0-9A-Za-z_+=:-]{1,200}"?')
ETAGS = ("ETag", "X-Linked-Etag")
VALUES = 1_000_000  # of an answer in JSON


def require_plausible(response: Any) -> None:
    """Event hook: raise ``LlragError`` for an answer of the hub that names what cannot be a file of its cache."""
    url = urlsplit(str(response.request.url))
    if url[:2] != urlsplit(constants.ENDPOINT)[:2]:  # scheme and host
        return
    for name in ETAGS:
        if not ETAG.fullmatch(value := response.headers.get(name, "none")):
            raise unreadable(response, f"its `{name}` is `{shortened(value)}`")
    commit = response.headers.get("X-Repo-Commit")
    if commit is not None and not COMMIT.fullmatch(commit):
        raise unreadable(response, f"it is said to be of commit `{shortened(commit)}`")
    if response.status_code == 200 and "/api/" in url.path:
        response.read()
        try:
            _require_listing(parse_json(response.content, values=VALUES))
        except UnreadableError as error:
            raise unreadable(response, error.reason) from None


def _require_listing(content: Any) -> None:
    """Raise ``UnreadableError`` for a repository or a list of its files that no hub has."""
    entries, name = content, "path"
    if isinstance(content, dict):
        if "siblings" not in content and "sha" not in content:
            return  # of something else, such as a token
        entries, name = content.get("siblings") or [], "rfilename"
        if not isinstance(content.get("id"), str) or not _is_commit(content.get("sha")):
            raise UnreadableError("it is no repository at a commit")
    if not isinstance(entries, list):
        raise UnreadableError("it is no list of files")
    for entry in entries:
        path = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(path, str):
            raise UnreadableError("a file has no name")
        if not is_inner_path(path):
            raise UnreadableError(f"it names the file {shortened(repr(path))}")
        size, lfs = entry.get("size", 0), entry.get("lfs")
        if type(size) is not int or size < 0:
            raise UnreadableError(f"a file has the size `{shortened(size)}`")
        if name == "path" and entry.get("type") == "file" and not _has_hash(entry.get("oid"), lfs):
            raise UnreadableError("a file has no hash")


def _is_commit(value: object) -> bool:
    return isinstance(value, str) and COMMIT.fullmatch(value) is not None


def _has_hash(blob: object, lfs: object) -> bool:
    """Whether the hash of a file is whole: the SHA-256 of a large one, or the git blob id."""
    if lfs is None:
        return _is_commit(blob)
    sha256 = lfs.get("oid") if isinstance(lfs, dict) else None
    return isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256) is not None


def unreadable(response: Any, reason: str) -> LlragError:
    """The error of an answer that cannot be used."""
    url = shortened(str(response.request.url).partition("?")[0], 200)
    return LlragError(
        f"the answer of `{url}` cannot be used: {reason}",
        hint="check HF_ENDPOINT and the proxy; the server is broken or hostile",
    )
