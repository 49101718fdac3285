"""Retrieval accuracy of keys: with known answers, and without."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity_by_lag(keys: Tensor, lags: Sequence[int]) -> Tensor:
    """Mean cosine of keys [F, D] at each of ``lags`` in frames, [len(lags)]; nan where a video is too short.

    Keys that collapse stay near 1 at every lag.
    """
    units = F.normalize(keys.float(), dim=-1)
    return torch.stack([(units[lag:] * units[: max(0, len(units) - lag)]).sum(-1).mean() for lag in lags])


def effective_rank(keys: Tensor) -> float:
    """Number of directions that keys [N, D] use: exp of the entropy of their singular values (Roy and Vetterli 2007).

    Keys are normalised and centred; the result is in 1..min(N, D).
    """
    units = F.normalize(keys.float(), dim=-1)
    values = torch.linalg.svdvals(units - units.mean(0))
    shares = values / values.sum().clamp_min(1e-12)
    return float(torch.special.entr(shares).sum().exp())


def recall_at(relevant: Tensor, count: int) -> Tensor:
    """Recall@count: relevant frames among the first ``count`` of a ranking, as a share of those that could be there.

    relevant [Q, N] tells, for each query, whether each frame of its ranking is relevant, best first. Returns [Q] in
    0..1; nan for queries without a relevant frame.
    """
    hits = relevant[:, :count].sum(1).float()
    possible = relevant.sum(1).clamp_max(count).float()
    return torch.where(possible > 0, hits / possible, torch.nan)


def reciprocal_rank(relevant: Tensor) -> Tensor:
    """One over the rank, from 1, of the first relevant frame of each ranking [Q, N]; nan where there is none."""
    first = relevant.float().argmax(dim=1)  # the first of equal maxima
    return torch.where(relevant.any(1), 1.0 / (first + 1), torch.nan)


def share_near(retrieved: Sequence[int], newest: int, *, within: int = 8) -> float:
    """Share of retrieved frames among the ``within`` newest candidates, of which ``newest`` is the last.

    Near 1, retrieval only reaches just past the guard, and a longer window would do the same.
    """
    return sum(newest - frame < within for frame in retrieved) / len(retrieved)
