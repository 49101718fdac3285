"""A hub on this machine: what of the Hugging Face hub's protocol `huggingface_hub` needs to list and fetch files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Content(Protocol):
    """A file that is too large to be held in memory."""

    sha256: str  # of the whole file

    def __len__(self) -> int: ...

    def chunks(self, start: int) -> Iterator[bytes]:
        """The bytes from one on."""
        ...


@dataclass
class Hub:
    """Repositories as ``{name: {path: content}}``, plain files at ``/web/``, and what should go wrong."""

    repos: Mapping[str, Mapping[str, bytes | Content]]
    web: dict[str, bytes] = field(default_factory=dict)
    breaks: dict[str, int] = field(default_factory=dict)  # path: bytes after which the connection drops, once
    corrupt: set[str] = field(default_factory=set)  # paths sent with other bytes than promised
    moved: dict[str, str] = field(default_factory=dict)  # path: the commit that its file is said to be of
    hangs: set[tuple[str, str]] = field(default_factory=set)  # method, path or repository: no answer until it closes
    endless: set[str] = field(default_factory=set)  # paths sent without end
    sent: Counter[str] = field(default_factory=Counter)  # bytes sent of those
    status: dict[str, int] = field(default_factory=dict)  # repository or path: HTTP status to answer with
    headers: dict[str, str] = field(default_factory=dict)  # to send along with such a status
    answers: dict[str, bytes] = field(default_factory=dict)  # revision, tree or paths-info: what is sent instead
    about: dict[str, dict[str, str | None]] = field(default_factory=dict)  # path: other headers; None leaves one out
    fetched: Counter[str] = field(default_factory=Counter)  # GETs of each path
    ranges: list[str] = field(default_factory=list)  # Range headers received

    def __enter__(self) -> Hub:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.closed = threading.Event()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"


def point_to(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HOME do for a new process."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:  # only of /api/models/OWNER/NAME/paths-info/REVISION
        asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        name, _ = self._split(unquote(urlsplit(self.path).path).removeprefix("/api/models/"))
        if self._fails(name):
            return
        files = self.hub.repos[name]
        self._json([_entry(path, files[path]) for path in asked if path in files], kind="paths-info")

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/web/"):
            name = path.removeprefix("/web/")
            if name not in self.hub.web:
                self._status(404, {})
            elif not self._fails(name):
                self._file(name, self.hub.web[name])
            return
        if path.startswith("/api/models/"):
            name, what = self._split(path.removeprefix("/api/models/"))
            if self._fails(name) or what is None:
                return
            files = self.hub.repos[name]
            if what.startswith("revision/"):
                siblings = [{"rfilename": each} for each in files]
                about = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []}
                self._json(about, kind="revision")
            else:
                self._json([_entry(each, content) for each, content in files.items()], kind="tree")
            return
        name, what = self._split(path[1:])
        if what is None:
            return
        file = what.split("/", 2)[2]  # resolve/REVISION/FILE
        if self._fails(name) or self._fails(file):
            return
        content = self.hub.repos[name].get(file)
        if content is None:
            self._status(404, {"X-Error-Code": "EntryNotFound"})
            return
        self._file(file, content)

    def _split(self, path: str) -> tuple[str, str | None]:
        owner, repo, *rest = path.split("/", 2)
        name = f"{owner}/{repo}"
        if name not in self.hub.repos:
            self._status(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            return name, None
        return name, rest[0] if rest else ""

    def _fails(self, key: str) -> bool:
        if (self.command, key) in self.hub.hangs:
            self.hub.closed.wait(10)
            self.close_connection = True
            return True
        status = self.hub.status.get(key)
        if status is not None:
            self._status(status, self.hub.headers)
        return status is not None

    def _status(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _json(self, value: Any, *, kind: str) -> None:
        body = self.hub.answers.get(kind, json.dumps(value).encode())
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, path: str, content: bytes | Content) -> None:
        start = 0
        wanted = self.headers.get("Range")
        if wanted is not None:
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if wanted else 200)
        headers: dict[str, str | None] = {"X-Repo-Commit": self.hub.moved.get(path, COMMIT)}
        headers["ETag"] = f'"{_etag(path, content)}"'
        if _large(path):
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
        for name, value in (headers | self.hub.about.get(path, {})).items():
            if value is not None:
                self.send_header(name, value)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        endless = path in self.hub.endless and self.command == "GET"
        if endless:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if endless:
            self._without_end(path)
            return
        self.hub.fetched[path] += 1
        if not isinstance(content, bytes):
            for chunk in content.chunks(start):
                self.wfile.write(chunk)
            return
        body = content[start:]
        if path in self.hub.corrupt:
            body = bytes(len(body))
        stop = self.hub.breaks.pop(path, None)
        self.wfile.write(body if stop is None else body[:stop])
        if stop is not None:
            self.wfile.flush()
            self.close_connection = True

    def _without_end(self, path: str) -> None:
        piece = b"%x\r\n%s\r\n" % (1 << 16, bytes(1 << 16))
        self.close_connection = True
        try:
            while self.hub.sent[path] < 100 << 20:
                self.wfile.write(piece)
                self.hub.sent[path] += 1 << 16
        except OSError:  # the client has left
            pass


def _large(path: str) -> bool:
    return path.endswith((".pt", ".pth", ".safetensors", ".model"))


def _etag(path: str, content: bytes | Content) -> str:
    if not isinstance(content, bytes):
        return content.sha256
    return hashlib.sha256(content).hexdigest() if _large(path) else _blob(content)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes | Content) -> dict[str, Any]:
    blob = _blob(content) if isinstance(content, bytes) else content.sha256[:40]  # not looked at for large files
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
    if _large(path):
        entry["lfs"] = {"oid": _etag(path, content), "size": len(content), "pointerSize": 130}
    return entry
