"""The settings with which a GPU gives the same bytes: chosen before it is used, and recorded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils import deterministic

from conftest import Llrag
from llrag_cli.engine.determinism import WORKSPACE, gpu_settings, set_deterministic
from llrag_cli.errors import LlragWarning

GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with a GPU that has not been used; the settings of this process are put back afterwards."""
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    fills = deterministic.fill_uninitialized_memory
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.delenv(WORKSPACE, raising=False)
    yield
    os.environ.pop(WORKSPACE, None)
    torch.use_deterministic_algorithms(before[0])
    cudnn.deterministic, cudnn.benchmark = before[1:]
    deterministic.fill_uninitialized_memory = fills


def test_the_same_bytes_are_the_default() -> None:
    set_deterministic("auto", fast=False)
    assert gpu_settings(GPU) == {
        "deterministic_algorithms": "true",
        "cudnn.deterministic": "true",
        "cudnn.benchmark": "false",
        WORKSPACE: ":4096:8",
    }
    assert torch.is_deterministic_algorithms_warn_only_enabled()  # an operation without such a kernel still runs
    assert not deterministic.fill_uninitialized_memory
    set_deterministic("auto", fast=True)
    assert gpu_settings(GPU) | {WORKSPACE: ""} == {
        "deterministic_algorithms": "false",
        "cudnn.deterministic": "false",
        "cudnn.benchmark": "true",
        WORKSPACE: "",
    }


def test_a_workspace_of_ones_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":16:8")
    set_deterministic("auto", fast=False)
    assert os.environ[WORKSPACE] == ":16:8"


def test_a_gpu_that_was_used_before_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.warns(LlragWarning, match="a GPU was in use before llrag could set CUBLAS_WORKSPACE_CONFIG=:4096:8"):
        set_deterministic("auto", fast=False)


def test_without_a_gpu_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    set_deterministic("cpu", fast=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_deterministic("auto", fast=False)
    assert WORKSPACE not in os.environ and not torch.are_deterministic_algorithms_enabled()
    assert gpu_settings(torch.device("cpu")) == {}


def test_a_run_records_them_and_a_resumed_one_says_if_they_differ(
    llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    few = ("--seconds", "2", "--set", "sampler.steps=[1000]", "--device", "cpu")
    made = llrag("generate", "a red circle", *few, "--fast", "--out", "run")
    assert made.returncode == 0, made.stderr
    assert "`--fast` changes nothing on a CPU" in made.stderr
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["gpu_settings"] == {}
    (tmp_path / "run/run.json").write_text(json.dumps(record | {"gpu_settings": {"cudnn.benchmark": "true"}}))
    longer = llrag("generate", "--resume", "run", "--seconds", "4")
    said = " ".join(longer.stderr.split())
    assert "`run` was begun with other settings of the GPU: it may differ from an uninterrupted run" in said
    assert json.loads((tmp_path / "run/run.json").read_text())["gpu_settings"] == {}
