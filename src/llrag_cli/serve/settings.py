"""What a server is started with: where it listens, where runs are, how videos are computed, and its bounds."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

from llrag_cli.batch.executors import RayCluster
from llrag_cli.cache.sharing import Sharing
from llrag_cli.files.guarded import MEGABYTE


@dataclass(frozen=True)
class Limits:
    """Bounds of what clients may ask for."""

    prompt: int = 20_000  # characters
    seconds: float = 3600.0  # of one video
    queue: int = 100  # videos that wait
    takes: int = 16  # videos of one request
    fields: int = 2 * MEGABYTE  # bytes of a request without files
    upload: int = 256 * MEGABYTE  # bytes of a request with files
    switches: int = 1000  # of one video, while it is generated
    pixels: int = 4096 * 4096  # of a picture of the video


@dataclass(frozen=True)
class Computing:
    """How workers compute; plain names, so that nothing of torch is needed to hold it."""

    device: str = "auto"
    dtype: str = "auto"
    offload: bool = False
    attention: str = "auto"
    compile: bool = False
    sharing: Sharing = "none"
    fast: bool = False


@dataclass(frozen=True)
class ServeSettings:
    """The settings of one server."""

    runs: Path
    models: tuple[str, ...] = ("tiny", "tiny-distilled")  # presets that clients may name; the first is the default
    host: str = "127.0.0.1"
    names: tuple[str, ...] = ()  # further host names that requests may be addressed to
    token: str | None = None  # None: no token is asked for
    workers: int = 1  # processes that generate at the same time; 0: none, requests for new videos are refused
    cluster: RayCluster | None = None  # where videos are generated instead, as many at the same time as it has room for
    computing: Computing = field(default_factory=Computing)
    limits: Limits = field(default_factory=Limits)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
