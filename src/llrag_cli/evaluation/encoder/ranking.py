"""How good keys are for recall: with known answers, and where there are none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity_by_lag(keys: Tensor, lags: Sequence[int]) -> Tensor:
    """Mean cosine of keys [F, D] that are each of ``lags`` frames apart, [len(lags)]; nan where a video is too short.

    Keys that collapse stay near 1 at every lag.
    """
    units = F.normalize(keys.float(), dim=-1)
    return torch.stack([(units[lag:] * units[: max(0, len(units) - lag)]).sum(-1).mean() for lag in lags])


def effective_rank(keys: Tensor) -> float:
    """Directions that keys [N, D] make use of: exp of the entropy of their singular values (Roy and Vetterli 2007).

    Keys are taken at unit norm and about their mean; the result lies in 1..min(N, D).
    """
    units = F.normalize(keys.float(), dim=-1)
    values = torch.linalg.svdvals(units - units.mean(0))
    shares = values / values.sum().clamp_min(1e-12)
    return float(torch.special.entr(shares).sum().exp())


def recall_at(relevant: Tensor, count: int) -> Tensor:
    """Share of the first ``count`` places of a ranking that are taken by relevant frames, of as many as could be.

    relevant [Q, N] tells, for each query, whether the frame on each place of its ranking is relevant, best place
    first. Returns [Q] in 0..1; nan for queries without a relevant frame.
    """
    found = relevant[:, :count].sum(1).float()
    possible = relevant.sum(1).clamp_max(count).float()
    return torch.where(possible > 0, found / possible, torch.nan)


def reciprocal_rank(relevant: Tensor) -> Tensor:
    """One over the place, from 1, of the first relevant frame of each ranking [Q, N]; nan where there is none."""
    first = relevant.float().argmax(dim=1)  # the first of equal maxima
    return torch.where(relevant.any(1), 1.0 / (first + 1), torch.nan)


def share_near(recalled: Sequence[int], newest: int, *, within: int = 8) -> float:
    """Share of recalled frames among the ``within`` newest candidates, of which ``newest`` is the last.

    A recall that only reaches past the guard has no memory of its own: near 1, the window might as well be longer.
    """
    return sum(newest - frame < within for frame in recalled) / len(recalled)
