"""HTML pages that are complete in themselves, from the templates of the package."""

from __future__ import annotations

import base64
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parents[1] / "templates"


def render(template: str, **values: Any) -> str:
    """A page from ``templates/``. Values are escaped; ``|tojson`` embeds data that cannot end its script element."""
    return _environment().get_template(template).render(values)


def data_url(content: bytes, kind: str) -> str:
    """Content of a media type such as ``image/png`` as a URL that needs no file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _script(name: str) -> Markup:
    """A script of the package as it is, to stand inside a script element."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _content_hash(content: str) -> Markup:
    """An inline script or style as a source expression of a Content-Security-Policy."""
    return Markup(f"'sha256-{base64.b64encode(sha256(content.encode()).digest()).decode()}'")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["script"] = _script
    environment.filters["content_hash"] = _content_hash
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment
