"""Names of attention backends, known before diffusers is imported, which takes seconds."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from llrag_cli.errors import UsageError, closest

AUTO, NATIVE = "auto", "native"  # found by trial on a GPU; torch's own


@cache
def attention_backends() -> tuple[str, ...]:
    """The values of diffusers' ``AttentionBackendName``, read from its source."""
    package = find_spec("diffusers")
    assert package is not None and package.origin is not None  # llrag requires it
    source = Path(package.origin).parent / "models/attention_dispatch.py"
    classes = [node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    names = next(node for node in classes if node.name == "AttentionBackendName")
    return tuple(str(ast.literal_eval(node.value)) for node in names.body if isinstance(node, ast.Assign))


def require_attention(name: str) -> None:
    """Raise ``UsageError`` unless a name is `auto`, or that of an attention backend that diffusers knows."""
    if name not in (AUTO, *attention_backends()):
        raise UsageError(f"unknown attention backend `{name}`", hint=closest(name, (AUTO, *attention_backends())))
