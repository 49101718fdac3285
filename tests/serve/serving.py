"""Servers for tests: in this process without workers, and as programs of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from llrag_cli.serve.app import create_app
from llrag_cli.serve.settings import ServeSettings
from waiting import wait_until

PROMPT = "a red circle bounces around on a plain blue wall"
OTHER = "a green square orbits on a striped pink wall"
MODEL = "tiny-distilled"
LOCAL = "http://127.0.0.1:8000"


class Unserved:
    """An application whose workers are not started: what it accepts waits in the queue."""

    def __init__(self, runs: Path, **settings: Any) -> None:
        self.settings = ServeSettings(runs=runs, **{"models": (MODEL, "tiny"), **settings})
        self.app = create_app(self.settings)
        self.queue = self.app.state.service.queue

    def request(self, method: str, path: str, *, base: str = LOCAL, **options: Any) -> httpx2.Response:
        """One request, as a client would send it to ``base``."""

        async def send() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self.app)
            async with httpx2.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, **options)

        return asyncio.run(send())

    def get(self, path: str, **options: Any) -> httpx2.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, content: Mapping[str, Any] | None = None, **options: Any) -> httpx2.Response:
        return self.request("POST", path, json=content, **options)

    def create(self, **fields: Any) -> dict[str, Any]:
        """A video that waits."""
        answer = self.post("/v1/videos", {"prompt": PROMPT, "seconds": "2", "seed": 1, **fields})
        assert answer.status_code == 200, answer.text
        content: dict[str, Any] = answer.json()
        return content


@dataclass
class Program:
    """A running ``llrag serve``."""

    process: subprocess.Popen[str]
    address: str
    runs: Path
    log: Path

    def call(self, method: str, path: str, **options: Any) -> httpx2.Response:
        return httpx2.request(method, self.address + path, timeout=600, **options)

    def video(self, identifier: str) -> dict[str, Any]:
        content: dict[str, Any] = self.call("GET", f"/v1/videos/{identifier}").json()
        return content

    def create(self, **fields: Any) -> str:
        answer = self.call("POST", "/v1/videos", json={"prompt": PROMPT, "seed": 1, **fields})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    def wait_for(self, identifier: str, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until a video is as it should be."""
        seen: dict[str, Any] = {}

        def happened() -> bool:
            seen.update(self.video(identifier))
            failed = seen["status"] == "failed" and seen["error"]["code"] != "cancelled"
            assert not failed or reached(seen), seen["error"]
            return reached(seen)

        wait_until(happened, self.process)
        return seen

    def finished(self, identifier: str) -> dict[str, Any]:
        return self.wait_for(identifier, lambda video: video["status"] == "completed")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait()


@contextmanager
def program(runs: Path, *arguments: str, command: str = "serve") -> Iterator[Program]:
    """A server as a program of its own, on a free port."""
    log = Path(tempfile.mkstemp(suffix=".log")[1])
    options = [] if command == "watch" else ["--runs", str(runs), "--backbone", MODEL, "--backbone", "tiny"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "llrag_cli", command, "--port", "0", *options, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
            env={**os.environ, "LLRAG_DEBUG": "1"},
        )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, log.read_text()
        yield Program(process, address.rstrip("/"), runs, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
        log.unlink()


def events_of(lines: Iterator[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The events of a stream: number, kind and content."""
    number, kind = 0, ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            number = int(value)
        elif name == "event":
            kind = value
        elif name == "data":
            yield number, kind, json.loads(value)


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def now() -> float:
    return time.time()
