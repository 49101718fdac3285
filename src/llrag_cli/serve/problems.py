"""Errors as the OpenAI API words them: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

from typing import Any

from llrag_cli.errors import LlragError


class ApiError(Exception):
    """A request that is refused, with the HTTP status of the answer."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None, hint: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.hint = status, message, code, param, hint

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        return error_content(self.status, self.message, code=self.code, param=self.param, hint=self.hint)


def error_content(
    status: int, message: str, *, code: str | None = None, param: str | None = None, hint: str = ""
) -> dict[str, Any]:
    """The body of an answer with an error."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    return {"error": error | {"hint": hint} if hint else error}


def refused(error: LlragError, *, param: str | None = None) -> ApiError:
    """The answer to a request that the library refuses."""
    return ApiError(400, error.problem, code="invalid_value", param=param, hint=error.hint)
