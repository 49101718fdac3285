"""Waiting in a browser for pages whose Content-Security-Policy forbids ``eval``."""

from __future__ import annotations

from typing import Any


def wait_until(page: Any, expression: str, *, seconds: float = 30) -> None:
    """Wait until a JavaScript expression is true; Playwright's own waiting evaluates it inside the page."""
    for _ in range(int(10 * seconds)):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise TimeoutError(expression)
