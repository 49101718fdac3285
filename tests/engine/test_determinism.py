"""What is set for the promise of the same bytes on GPUs, and what a run records of it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from fakecuda import FakeGPU
from llrag_cli.engine.determinism import determinism, set_determinism


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    torch.use_deterministic_algorithms(mode=False)
    torch.backends.cudnn.deterministic = False
    torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_cpu_needs_no_settings(device: str) -> None:
    set_determinism(device)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert determinism(torch.device("cpu")) is None


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "auto"])
def test_a_gpu_is_made_to_repeat_itself(device: str) -> None:
    with FakeGPU():
        set_determinism(device)
    assert determinism(torch.device("cuda")) == {
        "deterministic_algorithms": True,
        "cudnn_deterministic": True,
        "cudnn_benchmark": False,
        "cublas_workspace": ":4096:8",
    }


def test_a_workspace_of_ones_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_determinism("cuda")
    settings = determinism(torch.device("cuda"))
    assert settings is not None and settings["cublas_workspace"] == ":16:8"
