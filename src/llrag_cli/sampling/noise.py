"""Addressed noise: a draw depends on (seed, sample, block, step) only, not on the order of draws."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """The source of a rollout's noise."""

    def draw(self, block: int, step: int, shape: Sequence[int]) -> Tensor:
        """Standard normal noise [B, T, C, H, W] of a block; step 0 is its initial noise, later steps re-noise it."""
        ...


class AddressedNoise:
    """Normal noise from CPU generators seeded by (seed, sample, block, step).

    Each sample of a batch has its own address, so a video does not depend on the rest of the batch, on
    interruptions of the run, or on the device.
    """

    def __init__(self, seed: int | Sequence[int], samples: Sequence[int] = (0,)) -> None:
        """``seed`` is one for all ``samples``, or one for each."""
        self.samples = tuple(samples)
        self.seeds = (seed,) * len(self.samples) if isinstance(seed, int) else tuple(seed)
        if len(self.seeds) != len(self.samples):
            raise ValueError(f"{len(self.seeds)} seeds for {len(self.samples)} samples")

    def draw(self, block: int, step: int, shape: Sequence[int]) -> Tensor:
        """float32 noise [B, T, C, H, W] on the CPU, one row for each sample."""
        if shape[0] != len(self.samples):
            raise ValueError(f"a batch of {shape[0]} drawn from noise for {len(self.samples)} samples")
        rows = []
        for seed, sample in zip(self.seeds, self.samples, strict=True):
            address = f"{seed}/{sample}/{block}/{step}".encode()
            value = int.from_bytes(hashlib.blake2b(address, digest_size=8).digest(), "little") >> 1
            rows.append(torch.randn(*shape[1:], generator=torch.Generator().manual_seed(value)))
        return torch.stack(rows)
