"""What can go wrong between here and the hub, each in one sentence with a hint."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from llrag_cli.errors import LlragError

_KEPT = "run the same command again; files that are complete are kept"


@contextmanager
def explained(what: str, *, host: str | None = None) -> Iterator[None]:
    """Turn the hub client's errors about ``what`` into ``LlragError``; others pass. Without a host, it is the hub."""
    try:
        yield
    except LlragError:
        raise
    except Exception as error:
        known = _explain(error, what, host or constants.ENDPOINT)
        if known is None:
            raise
        raise known from error


def _explain(error: BaseException, what: str, host: str) -> LlragError | None:
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) and error.__cause__ else error
    if isinstance(cause, OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        return LlragError(
            f"HF_HUB_OFFLINE is set, and `{what}` is not in the hub's cache",
            hint="unset it for the download, or bring the cache from a machine that has it",
        )
    if isinstance(cause, GatedRepoError):
        return LlragError(
            f"`{what}` is given out only to those who accepted its terms",
            hint=f"accept them at {constants.ENDPOINT}/{what}, then log in with `hf auth login`",
        )
    if isinstance(cause, RepositoryNotFoundError):
        return LlragError(
            f"the hub has no `{what}`, or does not show it without a login",
            hint="log in with `hf auth login` or set HF_TOKEN; another `--source` may have the same weights",
        )
    if isinstance(cause, RevisionNotFoundError | EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
        return LlragError(
            f"`{what}` is not on the hub any more", hint="try another `--source`, or a newer version of llrag"
        )
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if status in (401, 403):
            return LlragError(
                f"the hub refuses `{what}` ({status})",
                hint="log in with `hf auth login`, or set HF_TOKEN to a valid token",
            )
        return LlragError(f"the hub answered {status} when asked for `{what}`", hint=f"try again later: {_KEPT}")
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return LlragError(
            f"the disk is full: `{what}` could not be written",
            hint=f"make room or move the hub's cache with HF_HOME, then {_KEPT}",
        )
    if isinstance(cause, OSError) and "Consistency check failed" in str(cause):
        return LlragError(f"`{what}` did not arrive whole", hint=_KEPT)
    if isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.startswith("httpx"):
        return LlragError(
            f"the connection to {host} failed at `{what}`: {_reason(cause)}",
            hint=f"check the connection, proxy or HF_ENDPOINT, then {_KEPT}",
        )
    if isinstance(cause, PermissionError):
        return LlragError(f"`{cause.filename}` may not be written", hint="choose another folder, or move HF_HOME")
    return None


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()
    return text[0] if text and text[0] else type(error).__name__
