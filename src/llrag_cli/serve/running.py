"""A server that runs until it is stopped."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import uvicorn

from llrag_cli.errors import UsageError
from llrag_cli.serve.app import create_app
from llrag_cli.serve.folders import only_server
from llrag_cli.serve.settings import ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

GRACE = 2  # seconds that open streams have to end


class _Server(uvicorn.Server):
    """A server that tells when it is ready, and ends the streams of those who follow videos."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._app, self._on_ready = app, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.service.followers.closing = True
        await super().shutdown(sockets=sockets)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens on an address. Raises ``UsageError`` if that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        opened.listen(2048)
    except (OSError, UnicodeError) as error:
        opened.close()
        if isinstance(error, socket.gaierror | UnicodeError) or error.errno == errno.EADDRNOTAVAIL:
            raise UsageError(f"`{host}` is no address of this machine", hint="for example `127.0.0.1`") from None
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"`{host}` port {port} cannot be used: {reason}", hint="choose another port") from None
    return opened


def serve(settings: ServeSettings, opened: socket.socket, *, on_ready: Callable[[], None]) -> None:
    """Serve on a socket until SIGINT or SIGTERM; ``on_ready`` is called when requests are answered."""
    with only_server(settings.runs) if settings.workers else nullcontext():
        app = create_app(settings)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE, timeout_keep_alive=30
        )
        _Server(config, app, on_ready).run(sockets=[opened])
