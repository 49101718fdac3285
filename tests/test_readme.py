"""The README's examples work: its first command generates a video, CI runs the second, and its Python code runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from llrag_cli.runs.video import read_video

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


def test_the_first_command_makes_a_video(tmp_path: Path) -> None:
    install, generate = commands()[0].split(" && ")
    assert install == "pip install ."
    program, *arguments = shlex.split(generate)
    assert program == "llrag"
    done = subprocess.run(
        [sys.executable, "-m", "llrag_cli", *arguments],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    frames = read_video(tmp_path / done.stdout.strip())
    assert len(frames) >= 80


def test_ci_runs_the_second_command() -> None:
    second = commands()[1]
    assert second == "pip install '.[test]' && pytest"
    assert second in (ROOT / ".ci/run").read_text()


def test_the_python_example_runs_twice_in_one_process() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    shortened = example.replace("seconds=10", "seconds=1")
    assert shortened != example
    code = f"{shortened}\nprint('again')\n{shortened}"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    first, second = done.stdout.split("again\n")
    assert first and first == second  # a video in the same process does not depend on the one before it
