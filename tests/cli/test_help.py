"""Help answers at once, and its pages are those in docs/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

from llrag_cli.cli import main

ROOT = Path(__file__).parents[2]
PAGES = {
    "llrag": (),
    "llrag generate": ("generate",),
    "llrag verify": ("verify",),
    "llrag presets": ("presets",),
    "llrag presets show": ("presets", "show"),
    "llrag presets strategies": ("presets", "strategies"),
    "llrag download": ("download",),
    "llrag download weights": ("download", "weights"),
    "llrag download prompts": ("download", "prompts"),
    "llrag download metrics": ("download", "metrics"),
    "llrag doctor": ("doctor",),
    "llrag extend": ("extend",),
    "llrag demo": ("demo",),
    "llrag export": ("export",),
    "llrag collect": ("collect",),
    "llrag train-encoder": ("train-encoder",),
    "llrag evaluate-encoder": ("evaluate-encoder",),
    "llrag inspect": ("inspect",),
    "llrag bench": ("bench",),
    "llrag bench score": ("bench", "score"),
    "llrag bench speed": ("bench", "speed"),
    "llrag bench leave-and-return": ("bench", "leave-and-return"),
}


def help_page(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llrag_cli", *command, "--help"],
        env={**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip()


def test_help_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['llrag', '--help']\n"
        "from llrag_cli.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("title", PAGES)
def test_every_option_of_a_command_is_in_the_docs(title: str) -> None:
    """docs/cli.md is written by ``python docs/write_cli.py``; here, that no option or command is missing from it."""
    written = (ROOT / "docs/cli.md").read_text().split(f"## {title}\n")[1].split("\n## ")[0]
    words = {word.strip("│,.") for word in help_page(*PAGES[title]).split()}
    options = {word for word in words if word.startswith("--")}
    assert options
    assert {option for option in options if option not in written} == set()


def test_help_of_options_keeps_its_brackets() -> None:
    """Help is markup: ``llrag[quantize]`` would be printed as ``llrag``."""
    found: dict[str, str] = {}

    def look(command: Any, name: str) -> None:  # typer has a click of its own, or the package, by its version
        for option in command.params:
            if text := getattr(option, "help", None):
                found[f"{name} {option.name}"] = text
        for child in getattr(command, "commands", {}).items():
            look(child[1], f"{name} {child[0]}")

    look(typer.main.get_command(main.app), "llrag")
    assert len(found) > 200
    assert any("[" in text for text in found.values())
    eaten = {name for name, text in found.items() if Text.from_markup(text).plain != text.replace("\\[", "[")}
    assert not eaten
