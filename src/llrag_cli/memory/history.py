"""Every latent frame made so far, each under the key it is found by, on the compute device."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class KeyEncoder(Protocol):
    """Turns latent frames into the vectors they are compared by."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Embeddings [N, D] of latent frames [N, C, H, W]."""
        ...


def average_pool(latents: Tensor) -> Tensor:
    """The mean of each channel over space: [N, C, H, W] to [N, C]."""
    return latents.float().mean(dim=(2, 3))


class GrowingTensor:
    """A tensor [B, N, ...] that grows along N; its room doubles when full, so appending is cheap."""

    def __init__(self) -> None:
        self._room: Tensor | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def filled(self) -> Tensor:
        """What was appended so far [B, N, ...], a view."""
        if self._room is None:
            raise ValueError("nothing was appended yet")
        return self._room[:, : self._count]

    def append(self, entries: Tensor) -> None:
        """Add entries [B, n, ...] at the end."""
        needed = self._count + entries.shape[1]
        if self._room is None or needed > self._room.shape[1]:
            capacity = max(needed, 2 * self._room.shape[1] if self._room is not None else 64)
            room = entries.new_empty(entries.shape[0], capacity, *entries.shape[2:])
            if self._room is not None:
                room[:, : self._count] = self._room[:, : self._count]
            self._room = room
        self._room[:, self._count : needed] = entries
        self._count = needed


class History:
    """Latent frames [B, N, C, H, W] and their unit keys [B, N, D], oldest first."""

    def __init__(self, encode: KeyEncoder) -> None:
        self._encode = encode
        self._frames = GrowingTensor()
        self._keys = GrowingTensor()

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def latents(self) -> Tensor:
        """All latent frames [B, N, C, H, W]."""
        return self._frames.filled

    @property
    def keys(self) -> Tensor:
        """All keys [B, N, D], unit norm, float32."""
        return self._keys.filled

    @torch.no_grad()
    def keys_of(self, latents: Tensor) -> Tensor:
        """Unit keys [B, T, D] of latent frames [B, T, C, H, W]."""
        embeddings = self._encode(latents.flatten(0, 1)).float()  # [B*T, D]
        return F.normalize(embeddings, dim=-1).unflatten(0, latents.shape[:2])

    def append(self, latents: Tensor) -> None:
        """Take in finished latent frames [B, T, C, H, W]."""
        self._keys.append(self.keys_of(latents))
        self._frames.append(latents)
