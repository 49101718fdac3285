"""What is printed is what was given: brackets in names and prompts are text."""

from __future__ import annotations

import pytest
from rich.table import Table

from llrag_cli.cli import console

HOSTILE = "a\x1b[31mb\x1b]0;t\x07\x9b1mc\rd"
NAMES = ["clip[final].mp4", "[/red]", "[bold]a[/bold]", ":cat:", "[link=http://a]b[/link]", "\\[x]"]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str], name: str) -> None:
    table = Table(name, title=name)
    table.add_row(name)
    console.result_table(table)
    console.note(name)
    console.warn(name)
    with console.working(name), console.counting(name, total=1) as advance:
        advance(1, name)
    with console.generation(name, blocks=1, frame_rate=16, folder=__file__):  # type: ignore[arg-type]
        pass
    out, err = capsys.readouterr()
    assert out.count(name) == 3
    assert err.count(name) >= 5


def test_texts_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    console.result_table(table)
    console.result(HOSTILE)
    console.note(HOSTILE)
    console.warn(HOSTILE)
    console.result_json({HOSTILE: HOSTILE})
    with console.counting(HOSTILE, total=1) as advance:
        advance(1, HOSTILE)
    out, err = capsys.readouterr()
    assert not any(control in out + err for control in "\x1b\x07\x9b\r")
    assert (out.count(r"a\x1b[31mb"), err.count(r"a\x1b[31mb")) == (4, 4)
    assert r'"a\u001b[31mb\u001b]0;t\u0007\u009b1mc\rd"' in out
