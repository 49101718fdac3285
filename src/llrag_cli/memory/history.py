"""Keys of all latent frames generated so far, on the compute device."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class KeyEncoder(Protocol):
    """Embeds latent frames for similarity search."""

    def __call__(self, latents: Tensor) -> Tensor:
        """Embeddings [N, D] of latent frames [N, C, H, W]."""
        ...


def average_pool(latents: Tensor) -> Tensor:
    """The mean of each channel over space: [N, C, H, W] to [N, C]."""
    return latents.float().mean(dim=(2, 3))


class GrowingTensor:
    """A tensor [B, N, ...] that grows along N; capacity starts at ``expected`` entries and doubles when full."""

    def __init__(self, expected: int = 64) -> None:
        self._expected = expected
        self._room: Tensor | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def filled(self) -> Tensor:
        """A view of all entries so far [B, N, ...]."""
        if self._room is None:
            raise ValueError("the tensor is empty")
        return self._room[:, : self._count]

    @property
    def bytes(self) -> int:
        """Allocated memory in bytes."""
        return 0 if self._room is None else self._room.numel() * self._room.element_size()

    def append(self, entries: Tensor) -> None:
        """Add entries [B, n, ...] at the end."""
        needed = self._count + entries.shape[1]
        if self._room is None or needed > self._room.shape[1]:
            capacity = max(needed, 2 * self._room.shape[1] if self._room is not None else self._expected)
            room = entries.new_empty(entries.shape[0], capacity, *entries.shape[2:])
            if self._room is not None:
                room[:, : self._count] = self._room[:, : self._count]
            self._room = room
        self._room[:, self._count : needed] = entries
        self._count = needed


class History:
    """Unit-norm keys [B, N, D] of all latent frames, oldest first, on the compute device.

    ``frames`` is the expected number of frames, for which space is allocated at once.
    """

    def __init__(self, encode: KeyEncoder, *, frames: int = 64) -> None:
        self._encode = encode
        self._keys = GrowingTensor(frames)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> Tensor:
        """All keys [B, N, D], float32; of unit norm, unless they were added as keys."""
        return self._keys.filled

    @property
    def bytes(self) -> int:
        """Allocated memory in bytes."""
        return self._keys.bytes

    @torch.no_grad()
    def keys_of(self, latents: Tensor) -> Tensor:
        """Unit keys [B, T, D] of latent frames [B, T, C, H, W]."""
        embeddings = self._encode(latents.flatten(0, 1)).float()  # [B*T, D]
        return F.normalize(embeddings, dim=-1).unflatten(0, latents.shape[:2])

    def append(self, latents: Tensor) -> None:
        """Add the keys of finished latent frames [B, T, C, H, W]."""
        self._keys.append(self.keys_of(latents))

    def append_keys(self, keys: Tensor) -> None:
        """Add keys [B, T, D] of finished latent frames that are known already; their norms are kept."""
        self._keys.append(keys)
