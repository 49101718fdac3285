"""The same bytes from the same seed on a GPU: the settings of torch and cuBLAS that this needs.

They are those of the released systems. A CPU needs none of them.
"""

from __future__ import annotations

import os
import warnings

import torch
from torch.utils import deterministic

from llrag_cli.errors import LlragWarning

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
SIZES = (":4096:8", ":16:8")  # workspaces with which cuBLAS is deterministic


def set_deterministic(device: str, *, fast: bool) -> None:
    """Choose kernels that give the same bytes each time or, if ``fast``, the fastest ones.

    Call it before anything is computed on a GPU: cuBLAS reads its setting once. It holds for the whole process. Nothing
    changes unless the name of the device is that of a GPU, or `auto` where there is one.
    """
    if not (device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())):
        return
    if not fast:
        if os.environ.get(WORKSPACE) not in SIZES:
            if torch.cuda.is_initialized():
                warnings.warn(
                    f"a GPU was in use before llrag could set {WORKSPACE}={SIZES[0]}: the same seed may give other "
                    "bytes; set it in the environment",
                    LlragWarning,
                    stacklevel=2,
                )
            os.environ[WORKSPACE] = SIZES[0]
        # an operation without a deterministic kernel is warned of; filling new tensors with NaN would only cost time
        deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(not fast, warn_only=True)
    torch.backends.cudnn.deterministic = not fast
    torch.backends.cudnn.benchmark = fast


def gpu_settings(device: torch.device) -> dict[str, str]:
    """What the bytes of a result on a GPU depend on besides the seed, as ``run.json`` records it; empty on a CPU."""
    if device.type != "cuda":
        return {}
    return {
        "deterministic_algorithms": str(torch.are_deterministic_algorithms_enabled()).lower(),
        "cudnn.deterministic": str(torch.backends.cudnn.deterministic).lower(),
        "cudnn.benchmark": str(torch.backends.cudnn.benchmark).lower(),
        WORKSPACE: os.environ.get(WORKSPACE, ""),
    }
