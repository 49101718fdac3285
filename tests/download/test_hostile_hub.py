"""A hub that is hostile: what it names does not become a path, and what it sends does not grow without end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from conftest import Llrag
from hub import COMMIT, Hub, point_to
from llrag_cli.download.fetch import link
from llrag_cli.download.hub import remove_orphans

REPO = "qixinhu11/LongLive-RAG"
PROMPTS = "checkpoints/moviegenbench_128_refined.txt"
BLOB = hashlib.sha1(b"blob 6\0a\nb\nc\n").hexdigest()
COMMAND = ("download", "prompts", "moviegenbench", "--to", "prompts")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub({REPO: {PROMPTS: b"a\nb\nc\n"}}) as running:
        point_to(running, tmp_path / "hf", monkeypatch)
        yield running


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def refused(llrag: Llrag, tmp_path: Path, problem: str) -> None:
    """The download ends in a sentence, and writes nothing but its lock, and nothing outside of its folders."""
    done = llrag(*COMMAND)
    assert done.returncode == 1, done.stdout
    assert problem in done.stderr and "\nhint: " in done.stderr and done.stderr.count("error: ") == 1
    assert {name for name in files(tmp_path) if not name.startswith("hf/")} <= {"prompts/download.lock"}


ENTRY: dict[str, Any] = {"type": "file", "path": PROMPTS, "size": 6, "oid": BLOB}
ABOUT: dict[str, Any] = {"_id": "1", "id": REPO, "sha": COMMIT, "siblings": [{"rfilename": PROMPTS}], "tags": []}


@pytest.mark.parametrize("name", ["ETag", "X-Linked-Etag"])
@pytest.mark.parametrize("value", ['"../../../mine"', '"/tmp/mine"', "a" * 5000, '"a\\b"', '""', '".."'])
def test_an_etag_is_no_path(hub: Hub, llrag: Llrag, tmp_path: Path, name: str, value: str) -> None:
    """The hub's client stores a file under its ETag."""
    (tmp_path / "mine").write_text("as it was")
    hub.about[PROMPTS] = {name: value}
    done = llrag(*COMMAND)
    assert done.returncode == 1 and f"its `{name}` is `" in done.stderr
    assert (tmp_path / "mine").read_text() == "as it was"
    assert not any("mine" in each for each in files(tmp_path / "hf"))


@pytest.mark.parametrize("commit", ["../../../mine", "main", "f" * 41])
def test_a_commit_is_no_path(hub: Hub, llrag: Llrag, tmp_path: Path, commit: str) -> None:
    hub.moved[PROMPTS] = commit
    refused(llrag, tmp_path, f"it is said to be of commit `{commit}`")
    hub.moved.clear()
    hub.answers["revision"] = json.dumps(ABOUT | {"sha": commit}).encode()
    refused(llrag, tmp_path, "it is no repository at a commit")


@pytest.mark.parametrize("headers", [{"ETag": None}, {"X-Repo-Commit": None}])
def test_a_file_without_etag_or_commit(hub: Hub, llrag: Llrag, tmp_path: Path, headers: dict[str, str | None]) -> None:
    hub.about[PROMPTS] = headers
    refused(llrag, tmp_path, "cannot be used")


@pytest.mark.parametrize("kind", ["revision", "tree", "paths-info"])
@pytest.mark.parametrize(
    "content",
    [b"<html>", b"", b"[" * 100_000, b"5", b"null", b'{"sha": 5}', b"[1]", b"\xff", b'[{"path": NaN}]', b"[[]]"],
)
def test_what_is_no_listing(hub: Hub, llrag: Llrag, tmp_path: Path, kind: str, content: bytes) -> None:
    if kind == "tree" and hub.answers.get(kind) is None:
        hub.answers["revision"] = json.dumps({**ABOUT, "siblings": None}).encode()  # so that the tree is asked for
    hub.answers[kind] = content
    done = llrag(*COMMAND)
    assert done.returncode in (0, 1) and "bug in llrag" not in done.stderr
    if kind != "tree":
        refused(llrag, tmp_path, "cannot be used")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        *(({"path": path}, "it names the file") for path in ("../../mine", "/mine", "a/../../mine", "x" * 300, "")),
        ({"path": "a\0"}, "null character"),
        ({"path": 5}, "a file has no name"),
        *(({"size": size}, "a file has the size") for size in (-1, "12", True, 1.5, None)),
        *(({"oid": digest}, "a file has no hash") for digest in (None, "", BLOB[:1], "../x", 5)),
        *(({"lfs": lfs}, "a file has no hash") for lfs in ("x", {}, {"oid": "a", "size": 6})),
    ],
)
def test_what_is_no_file(hub: Hub, llrag: Llrag, tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    hub.answers["paths-info"] = json.dumps([ENTRY | changes]).encode()
    refused(llrag, tmp_path, problem)


def test_a_file_is_listed_once(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    hub.answers["paths-info"] = json.dumps([ENTRY, ENTRY]).encode()
    refused(llrag, tmp_path, "twice")


def test_a_compressed_answer_is_refused(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    """A few bytes could unpack to any number of them."""
    hub.about[PROMPTS] = {"Content-Encoding": "gzip"}
    refused(llrag, tmp_path, "it is encoded as `gzip`")


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("headers", [{"Retry-After": "1000000000"}, {"RateLimit": '"api";r=0;t=1000000000'}])
@pytest.mark.parametrize("key", [REPO, PROMPTS])
def test_a_hub_that_asks_to_wait_for_years(
    hub: Hub, llrag: Llrag, tmp_path: Path, status: int, headers: dict[str, str], key: str
) -> None:
    hub.status[key] = status
    hub.headers = headers
    refused(llrag, tmp_path, f"answered {status}, and asks to wait for 1000000000 seconds")


def test_what_a_killed_download_left_is_removed(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    """The hub's client gives each attempt a name of its own, so that nobody continues or removes it."""
    blobs = tmp_path / "hf" / "models--qixinhu11--LongLive-RAG" / "blobs"
    blobs.mkdir(parents=True)
    orphan, other = blobs / f"{BLOB}.0a1b2c3d.incomplete", blobs / f"{'0' * 40}.0a1b2c3d.incomplete"
    for file in (orphan, other):
        file.write_bytes(b"a")
    assert llrag(*COMMAND).returncode == 0
    assert (orphan.exists(), other.exists()) == (False, True)
    orphan.write_bytes(b"a")
    lock = tmp_path / "hf" / ".locks" / "models--qixinhu11--LongLive-RAG" / f"{BLOB}.lock"
    with FileLock(lock):
        remove_orphans(REPO, BLOB)  # another process is at it
        assert orphan.exists()
    remove_orphans(REPO, BLOB)
    assert not orphan.exists()


def test_a_link_to_the_same_file_leaves_no_partial(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("a")
    for _ in range(2):
        link(tmp_path / "blob", tmp_path / "target")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blob", "target"]
