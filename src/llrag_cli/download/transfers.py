"""Limits of every request: a server that is silent, slow or does not stop sending ends in an error."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

from huggingface_hub import constants, get_session

from llrag_cli.download.answers import require_plausible, unreadable
from llrag_cli.errors import LlragError
from llrag_cli.files.guarded import shortened
from llrag_cli.formatting import human

PHASES = ("connect", "read", "write", "pool")  # of a request, each with a timeout
PATIENCE = 60.0  # seconds of waiting over which the speed is measured
SLOWEST = 1000  # bytes per second
ANSWER_BYTES = 64 * 2**20  # of an answer that is no file, such as the listing of a repository
ROOM = 2**20  # bytes by which the transfer of a file may exceed the file: it may be compressed on the way

_limit: ContextVar[int] = ContextVar("largest answer, in bytes", default=ANSWER_BYTES)


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Within this context, an answer may be as large as a file of this many bytes."""
    token = _limit.set(size + ROOM)
    try:
        yield
    finally:
        _limit.reset(token)


def session() -> Any:
    """The HTTP client of ``huggingface_hub``, with limits on time and size for all that it requests."""
    client = get_session()
    if _limited not in client.event_hooks["response"]:
        client.event_hooks["request"].append(_timed)
        client.event_hooks["response"] += [_limited, require_plausible]
    return client


def _timed(request: Any) -> None:
    """Event hook: no request waits for ever, as listings of the hub do by default."""
    given = request.extensions.get("timeout", {})
    default = constants.HF_HUB_DOWNLOAD_TIMEOUT
    timeout = {phase: default if (value := given.get(phase)) is None else value for phase in PHASES}
    request.extensions = {**request.extensions, "timeout": timeout}
    request.headers["Accept-Encoding"] = "identity"  # a few bytes could unpack to any number


def _limited(response: Any) -> None:
    """Event hook: check the body of an answer while it arrives; one that is compressed is refused."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity" and response.request.method != "HEAD":
        raise unreadable(response, f"it is encoded as `{shortened(encoding)}`, which was not asked for")
    # the clients of httpx and httpx2, of which the hub uses one or the other, insist on a stream of their own class
    base = next(each for each in type(response.stream).__mro__ if each.__name__ == "SyncByteStream")
    response.stream = _checked(base)(response.stream, str(response.request.url).partition("?")[0], _limit.get())


@cache
def _checked(base: type) -> type:
    class Checked(base):  # type: ignore[misc]
        def __init__(self, stream: Any, url: str, limit: int) -> None:
            self._stream, self._url, self._limit = stream, url, limit

        def __iter__(self) -> Iterator[bytes]:
            return checked(iter(self._stream), self._url, limit=self._limit)

        def close(self) -> None:
            self._stream.close()

    return Checked


def checked(chunks: Iterator[bytes], url: str, *, limit: int) -> Iterator[bytes]:
    """Pass on the chunks of an answer; raises ``LlragError`` once there are too many, or they arrive too slowly."""
    received, recent, waited = 0, 0, 0.0
    while True:
        asked = time.monotonic()
        chunk = next(chunks, None)
        waited += time.monotonic() - asked
        if chunk is None:
            return
        received, recent = received + len(chunk), recent + len(chunk)
        if received > limit:
            raise LlragError(
                f"`{url}` sends more than the {human(limit)} that were expected",
                hint="the server is broken or hostile; choose another source",
            )
        if waited > PATIENCE:
            if recent < SLOWEST * waited:
                raise LlragError(
                    f"`{url}` is too slow: {recent} bytes in {waited:.0f} seconds",
                    hint="try again later; complete files are kept",
                )
            recent, waited = 0, 0.0
        yield chunk
