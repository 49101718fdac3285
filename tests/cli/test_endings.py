"""Streams that are closed, full or of another encoding do not stop a command whose work is done."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llrag_cli.cli.streams import ForgivingStream, forgiving_streams

# a command in a process of its own that prints results; it does not load torch
SHOW = (sys.executable, "-m", "llrag_cli", "presets", "show", "tiny")
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a shell makes of a command, in which `$SHOW` prints results."""
    words = " ".join(SHOW)
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; SHOW='{words}'; {command}"],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("$SHOW | true", 0, ""),
        ("$SHOW >&-", 0, ""),
        ("$SHOW 2>&- >&- <&-", 0, ""),
        pytest.param(
            "$SHOW > /dev/full", 1, "error: not all results could be printed: no space left on device\n", marks=FULL
        ),
        pytest.param("$SHOW 2> /dev/full > /dev/null", 0, "", marks=FULL),
        pytest.param("$SHOW --wrong 2> /dev/full", 2, "", marks=FULL),
    ],
)
def test_streams_that_cannot_be_written(tmp_path: Path, command: str, code: int, message: str) -> None:
    done = shell(command, tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(message) and bool(done.stderr) == bool(message)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_characters_that_a_stream_lacks_are_escaped(tmp_path: Path) -> None:
    code = (
        "from llrag_cli.cli import console\n"
        "from llrag_cli.cli.streams import forgiving_streams\n"
        "with forgiving_streams():\n"
        "    console.result('n\\u00fb \\U0001f3ac')\n"
        "    console.result_json({'n\\u00fb': '\\U0001f3ac'})\n"
        "    console.note('n\\u00fb')\n"
    )
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    first, _, rest = done.stdout.partition("\n")
    assert first == r"n\xfb \U0001f3ac"
    assert json.loads(rest) == {"n\u00fb": "\U0001f3ac"}
    assert done.stderr == "n\\xfb\n"


def test_a_stream_that_was_lost_stays_so_and_the_others_are_restored(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(io.StringIO):
        writes = 0

        def write(self, text: str) -> int:
            self.writes += 1
            raise BrokenPipeError(32, "Broken pipe")

    broken = Broken()
    stream = ForgivingStream(broken)
    assert stream.write("abc") == 3 and stream.write("d") == 1
    stream.flush()
    assert broken.writes == 1 and isinstance(stream.lost, BrokenPipeError)
    before = sys.stdout, sys.stderr
    with forgiving_streams() as lost:
        sys.stdout.write("text")
        assert lost() is None
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().out == "text"
