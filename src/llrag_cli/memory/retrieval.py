"""The mathematics of recall: which past frames a block sees again.

Every policy is a pure function. Keys [B, N, D] and queries [B, D] are unit-norm, keys oldest first; only frames
in ``candidates`` can be chosen. Frames and similarities (cosines with the query) are [B, K] with
K = min(count, candidates).
"""

from __future__ import annotations

import torch
from torch import Tensor


def similarities(query: Tensor, keys: Tensor) -> Tensor:
    """Cosines [B, N] of keys [B, N, D] with a query [B, D]."""
    return torch.bmm(query.unsqueeze(1), keys.transpose(1, 2)).squeeze(1)  # on a CPU 3 times as fast as keys first


def nearest(query: Tensor, keys: Tensor, *, count: int, candidates: range) -> tuple[Tensor, Tensor]:
    """The frames whose keys best match the query, most similar first (LongLive-RAG)."""
    cosines = similarities(query, keys[:, candidates.start : candidates.stop])  # [B, M]
    best = cosines.topk(min(count, cosines.shape[1]), dim=1)
    return best.indices + candidates.start, best.values


def successors(query: Tensor, keys: Tensor, *, count: int, candidates: range, ahead: int) -> tuple[Tensor, Tensor]:
    """The frames ``ahead`` of those whose keys best match the query: what came next when it looked like this.

    Similarities are those of the matches. Fewer than ``ahead`` + 1 candidates hold no match: K is 0.
    """
    matched = range(candidates.start, max(candidates.start, candidates.stop - ahead))
    frames, cosines = nearest(query, keys, count=count, candidates=matched)
    return frames + ahead, cosines


def diverse(
    query: Tensor, keys: Tensor, *, count: int, candidates: range, relevance: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Maximal marginal relevance (Carbonell and Goldstein 1998): like the query, unlike what is chosen already.

    ``relevance`` in 0..1 weighs the one against the other; at 1 this is ``nearest``.
    """
    eligible = keys[:, candidates.start : candidates.stop]  # [B, M, D]
    cosines = similarities(query, eligible)
    rows = torch.arange(len(keys), device=keys.device)
    known = torch.full_like(cosines, -1.0)  # largest cosine with a frame chosen already; none yet
    taken = torch.zeros_like(cosines, dtype=torch.bool)
    chosen = []
    for _ in range(min(count, eligible.shape[1])):
        worth = relevance * cosines - (1 - relevance) * known
        pick = worth.masked_fill(taken, -torch.inf).argmax(dim=1)  # [B]
        taken[rows, pick] = True
        known = torch.maximum(known, similarities(eligible[rows, pick], eligible))
        chosen.append(pick)
    frames = torch.stack(chosen, dim=1)
    return frames + candidates.start, cosines.gather(1, frames)


def gated(query: Tensor, keys: Tensor, *, count: int, candidates: range, least: float) -> tuple[Tensor, Tensor]:
    """As ``nearest`` where the cosine is at least ``least``; the places left over go to the earliest frames."""
    cosines = similarities(query, keys[:, candidates.start : candidates.stop])
    early = -2.0 - torch.arange(cosines.shape[1], device=keys.device)  # below any cosine, falling with time
    best = torch.where(cosines >= least, cosines, early).topk(min(count, cosines.shape[1]), dim=1).indices
    return best + candidates.start, cosines.gather(1, best)


def spread(*, count: int, candidates: range) -> list[int]:
    """Frames at equal distances over the candidates, each in the middle of its share."""
    chosen = min(count, len(candidates))
    return [candidates[(2 * place + 1) * len(candidates) // (2 * chosen)] for place in range(chosen)]


def drawn(scores: Tensor, *, count: int, candidates: range) -> Tensor:
    """Frames [B, K] at random: those with the largest of independent scores [B, N]."""
    eligible = scores[:, candidates.start : candidates.stop]
    return eligible.topk(min(count, eligible.shape[1]), dim=1).indices + candidates.start
