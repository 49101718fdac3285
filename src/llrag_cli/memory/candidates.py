"""The past frames that a memory strategy may choose from, and how alike they are to the query.

Tensor methods alone are used, so that importing the strategies does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def cosine_similarities(query: Tensor, keys: Tensor) -> Tensor:
    """Cosines [B, M] of unit keys [B, M, D] with a unit query [B, D]."""
    return query.unsqueeze(1).bmm(keys.transpose(1, 2)).squeeze(1)  # on a CPU 3 times as fast as keys first


def attention_mass(query: Tensor, keys: Tensor, *, heads: int) -> Tensor:
    """Shares [B, M] of attention of a mean query [B, heads * D] to frames with mean keys [B, M, heads * D]; sum 1.

    A softmax over frames of the mean logit, over heads, queries and the tokens of each frame (GRAB of TetherCache,
    arXiv 2606.13035). Logits are linear in queries and in keys, so their means are enough.
    """
    head = query.shape[1] // heads
    return (cosine_similarities(query, keys) / (heads * head**0.5)).softmax(dim=1)


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions and values, both [B, K], of the largest scores [B, M], largest first; K = min(count, M)."""
    best = scores.topk(min(count, scores.shape[1]), dim=1)
    return best.indices, best.values


@dataclass(frozen=True)
class Candidates:
    """M past frames, oldest first, M > 0."""

    frames: Tensor  # [M], numbers of latent frames, rising
    keys: Tensor  # [B, M, D], unit norm
    query: Tensor  # [B, D], unit norm
    block: int  # latent frames of a block
    draw: Callable[[], Tensor]  # independent random scores [B, M], the same for the same seed and block
    groups: Tensor | None = None  # [M], equal for frames that follow each other without a cut; None: all do
    mass: Tensor | None = None  # [B, M], attention of the newest block to each, with keys `attention`

    @cached_property
    def similarities(self) -> Tensor:
        """Cosines [B, M] of all candidates with the query; with attention mass, that as a share of the largest."""
        if self.mass is not None:
            return self.mass / self.mass.amax(dim=1, keepdim=True)
        return cosine_similarities(self.query, self.keys)

    def with_similarities(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Positions [B, K] and the similarities of the frames there."""
        return positions, self.similarities.gather(1, positions)
