"""Checkpoints are read as data: code in them is refused, in words that do not advise to run it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llrag_cli.errors import DamagedFileError
from llrag_cli.files.tensors import read_file


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: torch.save({"model": Code()}, path), "it asks for `posix.system`, and only tensors are read"),
        (lambda path: path.write_bytes(pickle.dumps(Code())), "it is no archive as `torch.save` writes them"),
        (lambda path: path.write_bytes(b"noise" * 100), "it is no archive as `torch.save` writes them"),
    ],
)
def test_code_is_refused_without_advice_to_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "evil.pt")
    with pytest.raises(DamagedFileError) as caught:
        read_file(tmp_path / "evil.pt")
    assert caught.value.problem.endswith(f"cannot be read as a checkpoint: {reason}")
    assert "weights_only" not in caught.value.problem + caught.value.hint
    assert [file.name for file in tmp_path.iterdir()] == ["evil.pt"]
