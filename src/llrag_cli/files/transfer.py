"""Copies between host and device that neither side waits for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on a device, in a dtype; to a GPU from page-locked memory, so that the host does not wait."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.to(dtype or tensor.dtype).pin_memory().to(device, non_blocking=True)
    return tensor.to(device, dtype or tensor.dtype)


class HostCopy:
    """A small tensor on its way to the host; only ``tolist`` waits, for what was queued before the copy."""

    def __init__(self, tensor: Tensor) -> None:
        self._value = tensor.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def tolist(self) -> Any:
        """As ``Tensor.tolist``."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._value.tolist()
