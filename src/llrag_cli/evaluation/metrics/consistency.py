"""VBench's consistency of a sequence of features, and how VBench-Long joins two of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from torch import Tensor


def sequence_score(features: Tensor) -> float | None:
    """Similarity of features [N, D]: the mean over i >= 1 of half of max(0, cos(f_i-1, f_i)) + max(0, cos(f_0, f_i)).

    1 is a frozen sequence; None if there are fewer than two.
    """
    if len(features) < 2:
        return None
    units = F.normalize(features.float(), dim=-1)
    after_before = (units[1:] * units[:-1]).sum(-1).clamp_min(0)
    after_first = (units[1:] @ units[0]).clamp_min(0)
    return float(((after_before + after_first) / 2).mean())


def step_score(feature: Tensor, *, before: Tensor, first: Tensor) -> float:
    """One summand of ``sequence_score``: similarity of a feature [D] to the one before it and to the first."""
    unit = F.normalize(feature.float(), dim=0)
    cosines = [float(unit @ F.normalize(other.float(), dim=0)) for other in (before, first)]
    return (max(0.0, cosines[0]) + max(0.0, cosines[1])) / 2


@dataclass(frozen=True)
class MappingTable:
    """VBench-Long's calibration of scores across clips, for the very models it names: rising, each in 0..1."""

    across: tuple[float, ...]
    within: tuple[float, ...]  # the score within clips that corresponds to a score of ``across``

    def __call__(self, score: float) -> float:
        """The entry for a score, interpolated between its neighbours."""
        return float(np.interp(score, self.across, self.within))


def fused(within: float | None, mapped: float | None) -> float | None:
    """VBench-Long's one score for both: their mean (its ``--dev_flag``); None if either is unknown."""
    return None if within is None or mapped is None else 0.5 * within + 0.5 * mapped
