"""Download errors as one sentence with a hint."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    DryRunError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llrag_cli.download.catalogue import alternatives
from llrag_cli.errors import DownloadSourceError, LlragError

KEPT = "complete files are kept"
# what the hub's client raises for answers that lack something, or have it in another form
_UNEXPECTED_ANSWER = (
    *(FileMetadataError, LocalEntryNotFoundError),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError),
)


@contextmanager
def explained(repo: str, path: str = "", *, host: str | None = None) -> Iterator[None]:
    """Turn errors about a repository, or a file in it, into ``LlragError``; others pass.

    ``host`` is the server that was asked, by default the hub.
    """
    try:
        yield
    except LlragError:
        raise
    except Exception as error:
        known = _explain(error, repo, path, host or constants.ENDPOINT)
        if known is None and isinstance(error, _UNEXPECTED_ANSWER):
            known = LlragError(
                f"the hub's answer about `{f'{repo}/{path}' if path else repo}` cannot be used: {_reason(error)}",
                hint=f"check HF_ENDPOINT and the proxy, then try again; {KEPT}",
            )
        if known is None:
            raise
        raise known from error


def not_cached(what: str) -> LlragError:
    """The error of a file that is needed offline and is not in the cache."""
    return LlragError(
        f"HF_HUB_OFFLINE is set, and `{what}` is not in the hub's cache",
        hint="unset it for the download, or copy the cache from a machine that has the files",
    )


def _explain(error: Exception, repo: str, path: str, host: str) -> LlragError | None:
    what = f"{repo}/{path}" if path else repo
    wrapped = isinstance(error, LocalEntryNotFoundError | DryRunError)
    cause = error.__cause__ if wrapped and error.__cause__ else error
    if isinstance(cause, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return not_cached(what)
    if isinstance(cause, GatedRepoError):
        return LlragError(
            f"`{what}` requires you to accept its terms",
            hint=f"accept them at {constants.ENDPOINT}/{repo}, then log in with `hf auth login`",
        )
    if isinstance(cause, RepositoryNotFoundError):
        return DownloadSourceError(
            f"the hub has no repository `{repo}`, or it requires a login",
            alternatives=alternatives(repo),
            hint="log in with `hf auth login`, or set HF_TOKEN",
        )
    if isinstance(cause, RevisionNotFoundError | EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
        return DownloadSourceError(f"`{what}` is not on the hub any more", alternatives=alternatives(repo))
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if status in (401, 403):
            return LlragError(
                f"the hub denied access to `{what}` ({status})",
                hint="log in with `hf auth login`, or set HF_TOKEN to a valid token",
            )
        return LlragError(f"the hub answered {status} for `{what}`", hint=f"try again later; {KEPT}")
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return LlragError(
            f"`{what}` cannot be written: the disk is full",
            hint=f"free some space or move the hub's cache with HF_HOME, then try again; {KEPT}",
        )
    if isinstance(cause, OSError) and "Consistency check failed" in str(cause):
        return LlragError(f"the download of `{what}` is incomplete", hint=f"try again; {KEPT}")
    if isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.startswith("httpx"):
        return LlragError(
            f"the connection to {host} failed while requesting `{what}`: {_reason(cause)}",
            hint=f"check the network, the proxy and HF_ENDPOINT, then try again; {KEPT}",
        )
    if isinstance(cause, PermissionError):
        return LlragError(
            f"`{cause.filename}` cannot be written: permission denied",
            hint="choose another folder, or move the hub's cache with HF_HOME",
        )
    return None


def _reason(error: BaseException) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0] else type(error).__name__
