"""What a run cost: time by part, archive traffic, peak memory; and the versions it was made with."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, computed_field

from llrag_cli.cache.tiers import Tier

if TYPE_CHECKING:
    import torch


class ArchiveUse(BaseModel):
    """How often keys and values of retrieved frames were already on the device."""

    model_config = ConfigDict(frozen=True, extra="ignore")  # `hit_rate` is written but not read

    tier: Tier
    retrieved: int = Field(default=0, ge=0, le=2**53, description="frames retrieved")
    moved: int = Field(default=0, ge=0, le=2**53, description="of them, those moved to the device or recomputed there")

    @computed_field
    def hit_rate(self) -> float | None:
        """Share of retrieved frames that did not have to be moved; None if nothing was retrieved."""
        return round(1 - self.moved / self.retrieved, 4) if self.retrieved else None

    def plus(self, *, retrieved: int, moved: int) -> ArchiveUse:
        """With the traffic of one more block."""
        return self.model_copy(update={"retrieved": self.retrieved + retrieved, "moved": self.moved + moved})


def peak_memory(device: torch.device) -> int | None:
    """Peak memory so far, in bytes: allocated by torch on a GPU, else resident in this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def versions(*others: str) -> dict[str, str]:
    """Versions of Python and of the packages that determine a video, and of others."""
    found = {"python": platform.python_version()}
    for name in ("llrag", "torch", "diffusers", "transformers", *others):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
