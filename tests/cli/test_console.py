"""What is printed is what was given: brackets in names and prompts are text."""

from __future__ import annotations

import pytest
from rich.table import Table

from llrag_cli.cli import console

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
