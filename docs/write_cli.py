"""Writes docs/cli.md from the help pages: ``python docs/write_cli.py``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMANDS = (
    "",
    "generate",
    "extend",
    "demo",
    "storyboard",
    "decode",
    "export",
    "studio",
    "watch",
    "serve",
    "scene",
    "scene new",
    "scene check",
    "scene schema",
    "presets",
    "presets show",
    "presets strategies",
    "download",
    "download weights",
    "download prompts",
    "download metrics",
    "inspect",
    "bench",
    "bench score",
    "bench speed",
    "bench leave-and-return",
    "bench returning",
    "collect",
    "train-encoder",
    "evaluate-encoder",
    "doctor",
    "verify",
)


def main() -> None:
    """Run each help page and write all of them to docs/cli.md."""
    parts = ["# Command line\n\nWritten by `python docs/write_cli.py`.\n"]
    for command in COMMANDS:
        page = subprocess.run(
            [sys.executable, "-m", "llrag_cli", *command.split(), "--help"],
            env={**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        text = "\n".join(line.rstrip() for line in page.replace("python -m llrag_cli", "llrag").splitlines()).strip(
            "\n"
        )
        parts.append(f"## {f'llrag {command}'.strip()}\n\n```text\n{text}\n```\n")
    Path(__file__).with_name("cli.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
