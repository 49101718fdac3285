"""Files that no hub repository has, from the web servers of those who publish them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from huggingface_hub import constants, get_session

from llrag_cli.download.catalogue import CatalogueFile
from llrag_cli.download.problems import explained
from llrag_cli.errors import LlragError

if TYPE_CHECKING:
    from llrag_cli.download.plan import Wanted

AS_THEY_ARE = {"Accept-Encoding": "identity"}  # so that lengths are those of the files


@dataclass(frozen=True)
class Remote:
    """What is known of a file before it is fetched."""

    bytes: int
    sha256: str | None


def on_the_web(base: str, spec: CatalogueFile, target: Path) -> Remote:
    """Ask a web server for the size of a file; without a network, look at what is here already."""
    url = f"{base}/{spec.path}"
    if constants.HF_HUB_OFFLINE:
        if target.exists():
            return Remote(target.stat().st_size, None)
        raise LlragError(
            f"HF_HUB_OFFLINE is set, and there is no `{target}`",
            hint=f"unset it for the download, or bring the file of `{url}` there",
        )
    with explained(url, host=_host(url)):
        answer = get_session().head(url, headers=AS_THEY_ARE, follow_redirects=True)
    _require_success(answer, url)
    return Remote(int(answer.headers.get("Content-Length") or spec.bytes), None)


def bring_from_web(file: Wanted, url: str, *, advance: Callable[[str, int], None]) -> Path:
    """Fetch a file next to where it will lie, under a name that says it is not checked yet."""
    file.target.parent.mkdir(parents=True, exist_ok=True)
    partial = file.target.with_name(f"{file.target.name}.partial")
    try:
        with explained(url, host=_host(url)), get_session().stream("GET", url, headers=AS_THEY_ARE) as answer:
            _require_success(answer, url)
            with partial.open("wb") as stream:
                for part in answer.iter_bytes():
                    stream.write(part)
                    advance("fetch", len(part))
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def _require_success(answer: Any, url: str) -> None:
    if answer.status_code != 200:
        raise LlragError(
            f"{_host(url)} answered {answer.status_code} when asked for `{url}`",
            hint="try again later, or a newer version of llrag; files that are complete are kept",
        )


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
