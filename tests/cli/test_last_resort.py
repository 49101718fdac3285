"""An error that nothing expected is a sentence too, and a traceback on request."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

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


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        SafetensorError("Error while mapping: Cannot allocate memory (os error 12)"),
    ],
)
def test_memory_that_runs_out_while_loading(llrag: Llrag, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("safetensors.torch.load_file", load)  # a file that is intact is not called damaged
    done = llrag("generate", "a red circle", "--seconds", "2")
    assert done.returncode == 1
    assert (
        "error: memory ran out while the weights were loaded\n\nhint: free some memory; `llrag doctor`" in done.stderr
    )
    assert not Path("runs").exists()


def test_ctrl_c_in_a_batch_names_the_command_that_continues_all(llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llrag_cli.runs.maker.make_video", interrupted)
    monkeypatch.setattr("llrag_cli.runs.maker.make_takes", interrupted)
    Path("prompts.txt").write_text("a red circle\na green square\n")
    for options, command in (
        (("--prompts", "prompts.txt", "--out", "all"), "the same command"),
        (("--prompts", "prompts.txt"), "the same command with `--out runs`"),
        (("a red circle", "--takes", "2"), "the same command with `--out runs/a-red-circle`"),
        (("a red circle",), "`llrag generate --resume runs/a-red-circle`"),
    ):
        done = llrag("generate", *options, "--seconds", "2")
        assert done.returncode == 130
        assert f"stopped; {command} continues from here" in " ".join(done.stderr.split())
