"""What the hub answers, checked before its client uses it: names from it become paths in the cache."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants

from llrag_cli.errors import LlragError
from llrag_cli.files.guarded import UnreadableError, parse_json, shortened
from llrag_cli.files.paths import is_inner_path

COMMIT = re.compile("[0-9a-f]{40}")
ETAG = re.compile(r'(W/)?"?[0-9A-Za-z_+=:-]{1,200}"?')
ETAGS = ("ETag", "X-Linked-Etag")
BUSY = (429, 503)
LONGEST_WAIT = 60  # seconds that the hub's client may be asked to wait before it tries again
VALUES = 1_000_000  # of an answer in JSON


def require_plausible(response: Any) -> None:
    """Event hook: raise ``LlragError`` for an answer of the hub that names what cannot be a file of its cache."""
    if response.status_code in BUSY and (seconds := _asked_to_wait(response.headers)) > LONGEST_WAIT:
        raise LlragError(
            f"{urlsplit(str(response.request.url)).netloc} answered {response.status_code}, and asks to wait for "
            f"{seconds} seconds",
            hint="try again later; complete files are kept",
        )
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


def _asked_to_wait(headers: Mapping[str, str]) -> int:
    """Seconds until a busy server wants to be asked again; 0 if it does not say."""
    told = re.fullmatch(r"\s*(\d+)(\.\d*)?\s*", headers.get("Retry-After", ""), re.ASCII)
    limit = re.search(r";\s*t=(\d+)", headers.get("RateLimit", ""), re.ASCII)
    return max((int(found[1][:12]) for found in (told, limit) if found is not None), default=0)


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
    seen: set[str] = set()
    for entry in entries:
        path = entry.get(name) if isinstance(entry, dict) else None
        if not isinstance(path, str):
            raise UnreadableError("a file has no name")
        if not is_inner_path(path) or path in seen:
            raise UnreadableError(f"it names the file {shortened(repr(path))}{' twice' if path in seen else ''}")
        seen.add(path)
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
