"""An error that nothing expected is a sentence too, and a traceback on request."""

from __future__ import annotations

import pytest

from conftest import Llrag


@pytest.mark.parametrize(
    "error", [IndexError("list index out of range"), RecursionError(), UnicodeError("x"), OSError("y")]
)
def test_a_bug_is_a_sentence(llrag: Llrag, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("llrag_cli.presets.preset_names", broken)
    monkeypatch.setattr("llrag_cli.presets.load_config", broken)
    done = llrag("presets", "show", "tiny")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: this is a bug in llrag: {type(error).__name__}")
    assert "\n\nhint: report it with the command" in done.stderr and "Traceback" not in done.stderr
    monkeypatch.setenv("LLRAG_DEBUG", "1")
    assert "Traceback" in llrag("presets", "show", "tiny").stderr


def test_debug_comes_before_the_command(llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise KeyError("a")

    monkeypatch.setenv("LLRAG_DEBUG", "0")
    monkeypatch.setattr("llrag_cli.presets.load_config", broken)
    assert "Traceback" in llrag("--debug", "presets", "show", "tiny").stderr


def test_what_the_machine_lacks_is_no_bug(llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("llrag_cli.presets.load_config", broken)
    done = llrag("presets", "show", "tiny")
    assert (done.returncode, done.stderr.startswith("error: memory ran out\n\nhint: ")) == (1, True)
