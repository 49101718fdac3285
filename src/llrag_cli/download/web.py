"""Files that are not on the hub, from the web servers of their authors."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants

from llrag_cli.download.hub import Advance
from llrag_cli.download.problems import explained
from llrag_cli.download.transfers import at_most, session
from llrag_cli.errors import LlragError

UNCOMPRESSED = {"Accept-Encoding": "identity"}  # so that Content-Length is the size of the file


def size_on_web(url: str, *, target: Path) -> int | None:
    """Size of a file in bytes, if the server reports it; offline, the size of the file already at ``target``."""
    if constants.HF_HUB_OFFLINE:
        if target.exists():
            return target.stat().st_size
        raise LlragError(
            f"HF_HUB_OFFLINE is set, and `{target}` does not exist",
            hint=f"unset it for the download, or copy `{url}` there",
        )
    with explained(url, host=_host(url)):
        response = session().head(url, headers=UNCOMPRESSED, follow_redirects=True)
    _require_success(response, url)
    length = response.headers.get("Content-Length", "")
    return int(length) if re.fullmatch("[0-9]{1,15}", length) else None


def fetch_from_web(url: str, partial: Path, *, size: int, advance: Advance) -> None:
    """Download a file of ``size`` bytes to ``partial``; after an error nothing is left there."""
    try:
        with (
            explained(url, host=_host(url)),
            at_most(size),
            session().stream("GET", url, headers=UNCOMPRESSED, follow_redirects=True) as response,
        ):
            _require_success(response, url)
            with partial.open("wb") as stream:
                for chunk in response.iter_bytes():
                    stream.write(chunk)
                    advance("fetch", len(chunk))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _require_success(response: Any, url: str) -> None:
    if response.status_code != 200:
        raise LlragError(
            f"{_host(url)} answered {response.status_code} for `{url}`",
            hint="try again later, or update llrag; complete files are kept",
        )


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
