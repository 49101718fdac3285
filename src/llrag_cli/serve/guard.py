"""What every request passes: its host, its origin, its token, its size; and the headers that every answer gets."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
import socket
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from urllib.parse import SplitResult, parse_qs, urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llrag_cli.serve.problems import ApiError
from llrag_cli.serve.settings import ServeSettings

COOKIE = "llrag"
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
OPEN = ("/studio/icon.svg",)  # without a token


class Guard:
    """ASGI middleware: refuses what a page from elsewhere, or a rebound name, could send.

    A browser names the site that a request comes from (``Origin``, ``Sec-Fetch-Site``) and the name it was sent to
    (``Host``); programs send neither of the first two.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        own = {settings.host, f"[{settings.host}]", *settings.names}
        own |= set() if settings.is_local else {socket.gethostname(), socket.getfqdn()}
        self._names = {name.lower() for name in (*LOCAL_NAMES, *own)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                given = {name.lower() for name, _ in message["headers"]}
                extra = [(name.encode(), text.encode()) for name, text in HEADERS.items() if name.encode() not in given]
                if b"cache-control" not in given:
                    extra.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            self._require_host(headers)
            self._require_origin(scope, headers)
            if (answer := self._log_in(scope)) is not None:
                await _answer(guarded, 303, b"", answer)
                return
            self._require_token(scope, headers)
            limited = _Limited(receive, self._largest(scope, headers))
            limited.require(headers.get("content-length"))
            await self._app(scope, limited, guarded)
        except ApiError as error:
            if begun:
                raise
            extra_headers = {"content-type": "application/json"}
            if error.status == 401:
                extra_headers["www-authenticate"] = "Bearer"
            await _answer(guarded, error.status, json.dumps(error.content).encode(), extra_headers)

    def _require_host(self, headers: Mapping[str, str]) -> None:
        """Names that do not belong to this machine are refused: somebody made them point here."""
        host = headers.get("host", "")
        name = _split(f"//{host}").hostname or ""
        if name.lower() in self._names or f"[{name.lower()}]" in self._names:
            return
        if not self._settings.is_local and _is_address(name):
            return
        raise ApiError(
            421, f"requests to the host `{host[:80]}` are not answered", code="unknown_host",
            hint="use the address that the server printed when it was started, or allow this name there",
        )  # fmt: skip

    def _require_origin(self, scope: Scope, headers: Mapping[str, str]) -> None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        foreign = ApiError(403, "requests of pages from elsewhere are refused", code="foreign_origin")
        if origin is not None:
            parts = _split(origin)
            if parts.scheme not in ("http", "https") or parts.netloc.lower() != headers.get("host", "").lower():
                raise foreign
        visiting = headers.get("sec-fetch-mode") == "navigate" and scope["method"] == "GET" and scope["path"] == "/"
        if site not in ("none", "same-origin") and not visiting:
            raise foreign

    def _log_in(self, scope: Scope) -> dict[str, str] | None:
        """The page opened with the token in its address: keep it in a cookie, and take it out of the address."""
        token = self._settings.token
        if token is None or scope["path"] != "/" or scope["method"] != "GET":
            return None
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not given or not _equal(given, token):
            return None
        cookie = f"{COOKIE}={_derived(token)}; Path=/; HttpOnly; SameSite=Strict"
        return {"location": "/", "set-cookie": cookie}

    def _require_token(self, scope: Scope, headers: Mapping[str, str]) -> None:
        token = self._settings.token
        if token is None or scope["path"] in OPEN:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _equal(given.strip(), token):
            return
        try:
            morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            morsel = None
        if morsel is not None and _equal(morsel.value, _derived(token)):
            return
        raise ApiError(
            401, "this server asks for a token", code="invalid_api_key",
            hint="send it as `Authorization: Bearer TOKEN`, or open the address that was printed when it was started",
        )  # fmt: skip

    def _largest(self, scope: Scope, headers: Mapping[str, str]) -> int:
        limits = self._settings.limits
        form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        return limits.upload if form else limits.fields


class _Limited:
    """The body of a request, up to a number of bytes."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._count = receive, limit, 0

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._count += len(message.get("body", b""))
            self._require(self._count)
        return message

    def require(self, length: str | None) -> None:
        """Raise ``ApiError`` if the length that a request announces is too much."""
        if length is not None:
            self._require(int(length) if re.fullmatch("[0-9]{1,18}", length) else self._limit + 1)

    def _require(self, count: int) -> None:
        if count > self._limit:
            raise ApiError(
                413, f"the request is larger than {self._limit} bytes", code="request_too_large",
                hint="send a shorter text or a smaller file",
            )  # fmt: skip


async def _answer(send: Send, status: int, body: bytes, headers: Mapping[str, str]) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    pairs.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _split(address: str) -> SplitResult:
    """The parts of an address; of one that is none, nothing."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _equal(one: str, other: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def _derived(token: str) -> str:
    """What a cookie holds instead of the token."""
    return hmac.new(token.encode(), b"llrag studio", hashlib.sha256).hexdigest()


def _is_address(name: str) -> bool:
    """Whether a host is an IP address, which cannot be rebound."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
