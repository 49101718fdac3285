"""The page that describes the HTTP interface, made from its OpenAPI description; it loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llrag_cli.files.html import render


def docs_page(openapi: Mapping[str, Any]) -> str:
    """The routes of an OpenAPI description with their parameters and fields, as a page."""
    routes = []
    for path, methods in openapi["paths"].items():
        for method, about in methods.items():
            content = about.get("requestBody", {}).get("content", {})
            parameters = [
                (each["name"], each["in"], each.get("schema", {}).get("default", ""))
                for each in about.get("parameters", ())
            ]
            routes.append(
                {
                    "method": method.upper(),
                    "path": path,
                    "summary": about.get("summary", ""),
                    "kinds": list(content),
                    "parameters": parameters,
                    "fields": _fields(content, openapi),
                }
            )
    return render("http.html", title=openapi["info"]["title"], version=openapi["info"]["version"], routes=routes)


def _fields(content: Mapping[str, Any], openapi: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and descriptions of the fields of a body."""
    for about in content.values():
        schema = about.get("schema", {})
        if "$ref" in schema:
            schema = openapi["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
        fields = schema.get("properties", {}).items()
        about = {name: field.get("description", "a file" if "format" in field else "") for name, field in fields}
        return [(name, text.replace("`", "")) for name, text in about.items()]
    return []
