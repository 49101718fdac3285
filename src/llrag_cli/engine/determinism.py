"""Settings of GPUs on which the promise rests that the same input gives the same bytes."""

from __future__ import annotations

import os
from typing import Any

import torch

WORKSPACE = ":4096:8"  # cuBLAS gives the same result each time with one of fixed size


def set_determinism(device: str) -> None:
    """Have GPUs of this process compute the same bytes each time; to be called before one is used.

    Nothing changes if the name of the device is not that of a GPU, nor of `auto` on a machine that has one.
    cuBLAS reads its workspace from the environment when it is first used; one that is set there is kept. Operations
    that have no deterministic form warn instead of stopping the run.
    """
    if not (device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())):
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # all of it is written


def determinism(device: torch.device) -> dict[str, Any] | None:
    """The settings that decide on a GPU whether the same input gives the same bytes; None on a CPU, where it does."""
    if device.type != "cuda":
        return None
    return {
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }
