"""The reasons for which a test may be skipped. Any other skip is a failure: a test that never runs guards nothing."""

from __future__ import annotations

ALLOWED = {
    "needs Chromium": "pages are opened in the browser of the machine",
    "needs /dev/full": "Linux",
    "needs /proc": "Linux",
    "needs a torchvision made for this torch": "RAFT; the extra `official` is not part of `test`",
    "needs torchao": "eight-bit layers; the extra `quantize` is not part of `test`",
    "this ffmpeg crashes on the format": "some builds of ffmpeg lack an encoder",
}


def unexpected(reason: str) -> bool:
    """Whether nobody allowed a test to be skipped for this reason."""
    return reason.removeprefix("Skipped: ") not in ALLOWED
