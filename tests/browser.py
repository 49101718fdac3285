"""Waiting in a browser for pages whose Content-Security-Policy forbids ``eval``."""

from __future__ import annotations

from typing import Any


def wait_until(page: Any, expression: str, *, seconds: float = 3600) -> None:
    """Wait until a JavaScript expression is true, on a machine of any load; Playwright itself would use ``eval``."""
    for _ in range(int(10 * seconds)):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise TimeoutError(expression)
