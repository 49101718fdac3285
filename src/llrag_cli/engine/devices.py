"""Where a model runs, and in which dtype."""

from __future__ import annotations

import torch

from llrag_cli.errors import UsageError, closest
from llrag_cli.files.tensors import DTYPES
from llrag_cli.models.family import Family


def find_device(name: str) -> torch.device:
    """The device of a name; ``auto`` is the first GPU, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
        raise UsageError(
            f"unknown device `{name}`",
            hint=f"this machine has {', '.join(f'`{device}`' for device in available)}",
        ) from None
    if device.type in ("meta", "mps"):
        lacks = "computes nothing" if device.type == "meta" else "has no float64, which the sampler needs"
        raise UsageError(f"the device `{name}` {lacks}", hint="use `cpu`, or a CUDA GPU")
    return device


def find_dtype(name: str, device: torch.device, *, family: Family | None = None) -> torch.dtype:
    """The dtype of a name; ``auto`` is the family's own on a GPU, else float32."""
    if name == "auto":
        return DTYPES[family.gpu_dtype] if device.type == "cuda" and family is not None else torch.float32
    if name not in DTYPES:
        raise UsageError(f"unknown dtype `{name}`", hint=closest(name, DTYPES))
    return DTYPES[name]
