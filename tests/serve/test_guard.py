"""What is refused before anything is read: other hosts and origins, missing tokens, large bodies; and the headers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llrag_cli.serve.guard import CSP
from llrag_cli.serve.settings import Limits, is_loopback
from serve.serving import PROMPT, Unserved

TOKEN = "correct horse battery"


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Unserved:
    return Unserved(tmp_path_factory.mktemp("runs"), limits=Limits(fields=10_000, upload=50_000))


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Unserved:
    return Unserved(tmp_path_factory.mktemp("runs"), host="0.0.0.0", token=TOKEN, names=("studio.example",))


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:9", "[::1]:8000", "LOCALHOST"])
def test_the_names_of_this_machine_are_answered(local: Unserved, host: str) -> None:
    assert local.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["rebound.example", "127.0.0.1.rebound.example:8000", "192.168.0.9", "", "[", "a b"])
def test_a_rebound_name_is_not_answered(local: Unserved, host: str) -> None:
    answer = local.get("/v1/models", headers={"host": host})
    assert answer.status_code == 421
    assert answer.json()["error"]["code"] == "unknown_host"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:9999"},  # another server of this machine
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/videos"), ("GET", "/v1/videos"), ("DELETE", "/v1/videos/x")]
)
def test_a_page_from_elsewhere_is_refused(local: Unserved, method: str, path: str, headers: dict[str, str]) -> None:
    answer = local.request(method, path, headers=headers, content=b"{}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
    assert local.get("/v1/videos").json()["data"] == []


def test_the_own_page_and_links_to_it_are_answered(local: Unserved) -> None:
    own = {"origin": "http://127.0.0.1:8000", "sec-fetch-site": "same-origin"}
    assert local.get("/v1/videos", headers=own).status_code == 200
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert local.get("/", headers=link).status_code == 200
    assert local.get("/v1/videos", headers=link).status_code == 403


def test_a_token_is_asked_for(public: Unserved) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}, {"cookie": "llrag=x"}):
        answer = public.get("/v1/videos", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert public.get("/", headers={}).status_code == 401
    assert public.get("/v1/videos", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_the_page_is_opened_with_the_token_and_keeps_it_in_a_cookie(public: Unserved) -> None:
    assert public.get("/?token=wrong").status_code == 401
    answer = public.get(f"/?token={TOKEN.replace(' ', '%20')}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie and TOKEN not in cookie
    assert public.get("/", headers={"cookie": cookie.split(";")[0]}).status_code == 200


def test_hosts_of_a_public_server(public: Unserved) -> None:
    """An address cannot be rebound, a name can."""
    token = {"authorization": f"Bearer {TOKEN}"}
    for host, status in (("192.168.0.9:8000", 200), ("studio.example", 200), ("rebound.example", 421)):
        assert public.get("/v1/models", headers={**token, "host": host}).status_code == status


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("studio", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_large_bodies_are_refused(local: Unserved) -> None:
    large = local.post("/v1/videos", {"prompt": PROMPT + " " * 20_000})
    assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    file = {"input_reference": ("a.png", b"x" * 60_000)}
    assert local.request("POST", "/v1/videos", files=file, data={"prompt": PROMPT}).status_code == 413

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000

    answer = local.request("POST", "/v1/videos", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


@pytest.mark.parametrize("path", ["/", "/v1/videos", "/v1/videos/nope", "/studio/icon.svg", "/nope", "/docs"])
def test_headers_of_every_answer(local: Unserved, path: str) -> None:
    answer = local.get(path)
    assert answer.headers["content-security-policy"] == CSP
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    kind = answer.headers["content-type"].partition(";")[0]
    assert kind in ("text/html", "application/json", "image/svg+xml")


def test_files_of_the_page_stay_in_their_folder(local: Unserved, tmp_path: Path) -> None:
    for path in ("/studio/../app.py", "/studio/%2e%2e/app.py", "/studio/..%2fapp.py", "/studio//etc/passwd"):
        assert local.get(path).status_code == 404
