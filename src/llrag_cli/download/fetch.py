"""Carrying a plan out: huggingface_hub brings the files, each is checked, converted or linked, and noted."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.utils.tqdm import tqdm

from llrag_cli.download.plan import Wanted, write_record
from llrag_cli.download.problems import explained
from llrag_cli.download.web import bring_from_web
from llrag_cli.errors import LlragError

Advance = Callable[[str, int], None]  # what is done ("fetch", "check", "convert"), bytes further


def fetch(wanted: Iterable[Wanted], folder: Path, *, dtype: str, prune: bool, advance: Advance) -> None:
    """Bring every file of a plan that is not present into the weights folder.

    Interrupted anywhere, what is complete stays and nothing incomplete has a final name.
    """
    for file in wanted:
        if file.state == "present":
            continue
        cached = bring_from_web(file, file.url, advance=advance) if file.url else bring(file, advance=advance)
        check(file, cached, advance=advance)
        try:
            file.target.parent.mkdir(parents=True, exist_ok=True)
            if file.url:
                cached.replace(file.target)
            elif file.spec.convert is None:
                link(cached, file.target)
            else:
                from llrag_cli.download.convert import convert

                convert(cached, file.target, kind=file.spec.convert, ema=file.spec.ema, dtype=dtype)
            write_record(folder, file, dtype=dtype if file.spec.convert in ("generator", "lora") else None)
        except OSError as error:
            raise LlragError(
                f"`{file.target}` cannot be written: {(error.strerror or str(error)).lower()}",
                hint="make room or choose another folder with `--to`; what was fetched stays in the hub's cache",
            ) from error
        advance("convert", file.bytes)
        if prune and file.spec.convert is not None:
            forget(cached)


def bring(file: Wanted, *, advance: Advance) -> Path:
    """The file in the hub's cache, fetched if it is not there."""

    class Bar(tqdm):
        """Tells our one display; draws nothing itself."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]
            if kwargs.get("initial"):
                advance("fetch", kwargs["initial"])

        def update(self, n: float | None = 1) -> bool | None:
            advance("fetch", int(n or 0))
            return None

    with explained(f"{file.repo}/{file.path}"):
        return Path(hf_hub_download(file.repo, file.path, revision=file.commit, library_name="llrag", tqdm_class=Bar))


def check(file: Wanted, cached: Path, *, advance: Advance) -> None:
    """Compare size and SHA-256 with what the hub promised; a wrong file is taken out of the cache."""
    size = cached.stat().st_size
    problem = f"has {size} bytes, not {file.bytes}" if size != file.bytes else None
    if problem is None and file.sha256 is not None:
        digest = hashlib.sha256()
        with cached.open("rb") as stream:
            while part := stream.read(1 << 24):
                digest.update(part)
                advance("check", len(part))
        if not digest.hexdigest().startswith(file.sha256):
            problem = f"has SHA-256 {digest.hexdigest()[:12]}…, not {file.sha256[:12]}…"
    if problem is not None:
        forget(cached)
        raise LlragError(
            f"`{file.repo}/{file.path}` arrived damaged: it {problem}",
            hint="it was removed; run the same command again",
        )


def forget(cached: Path) -> None:
    """Take a file out of the hub's cache: the snapshot's link and what it points to."""
    blob = cached.resolve()
    cached.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


def link(cached: Path, target: Path) -> None:
    """Give a file of the cache a second name: a hard link, or where that cannot be a symbolic one."""
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    blob = cached.resolve()
    try:
        os.link(blob, partial)
    except OSError:
        partial.symlink_to(blob)
    partial.replace(target)
