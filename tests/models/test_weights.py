"""Which file a setting names."""

from __future__ import annotations

from pathlib import Path

from llrag_cli.models.weights import converted


def test_the_file_that_is_named_is_read_and_no_neighbour_of_it(tmp_path: Path) -> None:
    named, neighbour = tmp_path / "encoder.pt", tmp_path / "encoder.safetensors"
    assert converted(named) == named
    neighbour.touch()
    assert converted(named) == neighbour  # what `llrag download` leaves of a checkpoint
    named.touch()
    assert converted(named) == named
