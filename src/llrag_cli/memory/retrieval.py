"""The mathematics of recall."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(query: Tensor, keys: Tensor, *, count: int, candidates: range) -> tuple[Tensor, Tensor]:
    """Past frames whose keys best match the query, most similar first, with their cosines.

    query [B, D] and keys [B, N, D] are unit-norm; only frames in ``candidates`` can be chosen.
    Returns frames and similarities [B, K] with K = min(count, len(candidates)).
    """
    eligible = keys[:, candidates.start : candidates.stop]  # [B, M, D]
    similarity = torch.bmm(eligible, query.unsqueeze(2)).squeeze(2)  # [B, M], cosine in [-1, 1]
    best = similarity.topk(min(count, similarity.shape[1]), dim=1)
    return best.indices + candidates.start, best.values
