"""What the rest of llrag knows of a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class TextEncoder(Protocol):
    """Turns prompts into what the backbone's cross-attention reads."""

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings [B, length, D]; rows after a prompt's own tokens are zero."""
        ...
