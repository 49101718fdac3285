"""Bodies of requests: JSON, and the forms that the ``openai`` client sends."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from llrag_cli.files.guarded import UnreadableError, parse_json
from llrag_cli.serve.plans import parse_fields
from llrag_cli.serve.problems import ApiError

Model = TypeVar("Model", bound=BaseModel)
Collected = TypeVar("Collected", list[Any], dict[str, Any])
NESTED = re.compile(r"(\w+)\[(\w*)\]")  # `references[]`, `video[id]`
MOST_FIELDS = 200


@dataclass
class Body:
    """Fields of a request, and its files by field."""

    fields: dict[str, Any] = field(default_factory=dict)
    files: dict[str, UploadFile] = field(default_factory=dict)


@asynccontextmanager
async def read_body(request: Request, *, largest_field: int) -> AsyncIterator[Body]:
    """The body of a request; its files are removed when the block ends. Raises ``ApiError``."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        try:
            form = await request.form(max_files=4, max_fields=MOST_FIELDS, max_part_size=largest_field)
        except (MultiPartException, FormParserError, HTTPException) as error:
            problem = getattr(error, "message", None) or getattr(error, "detail", None) or error
            raise ApiError(400, f"the form cannot be read: {str(problem)[:200]}", code="invalid_body") from None
        try:
            yield _of_form(form.multi_items())
        finally:
            await form.close()
        return
    if kind not in ("application/json", ""):
        raise ApiError(415, f"`{kind[:80]}` is not read", code="invalid_body", hint="send JSON, or a multipart form")
    content = await request.body()
    try:
        value = parse_json(content) if content.strip() else {}
    except UnreadableError as error:
        raise ApiError(400, f"the body is not valid: {error.reason}", code="invalid_body", hint=error.hint) from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body is not a JSON object", code="invalid_body")
    yield Body(value)


def fields_of(model: type[Model], body: Body, *, files: Sequence[str] = ()) -> Model:
    """The fields of a request, which may have the named files. Raises ``ApiError``."""
    for name in body.files:
        if name not in files:
            raise ApiError(400, f"unknown file `{name[:80]}`", code="unknown_parameter", param=name[:80])
    return parse_fields(model, body.fields)


def described(model: type[BaseModel], file: str | None = None) -> dict[str, Any]:
    """The body of a request in OpenAPI: JSON, or a form that may have a file."""
    schema = model.model_json_schema()
    if file is None:
        return {"requestBody": {"content": {"application/json": {"schema": schema}}}}
    form = {**schema, "properties": {**schema["properties"], file: {"type": "string", "format": "binary"}}}
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": schema}}
    return {"requestBody": {"content": content}}


def _of_form(items: list[tuple[str, UploadFile | str]]) -> Body:
    """Fields of a form: those whose name ends with ``[]``, or that come twice, are lists."""
    body = Body()
    for name, value in items:
        if isinstance(value, UploadFile):
            if name in body.files:
                raise ApiError(400, f"the file `{name[:80]}` is given twice", code="invalid_body", param=name[:80])
            body.files[name] = value
            continue
        nested = NESTED.fullmatch(name)
        plain = name if nested is None else nested[1]
        before = body.fields.get(plain)
        if nested is not None and nested[2]:
            body.fields[plain] = {**_of_kind(dict, before, plain), nested[2]: value}
        elif nested is not None or before is not None:
            body.fields[plain] = [*_of_kind(list, [before] if isinstance(before, str) else before, plain), value]
        else:
            body.fields[plain] = value
    return body


def _of_kind(kind: type[Collected], value: Any, name: str) -> Collected:
    """What a form has of a field so far: a list, or a mapping."""
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ApiError(400, f"the field `{name[:80]}` is given in two ways", code="invalid_body", param=name[:80])
    return value
