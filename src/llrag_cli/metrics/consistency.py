"""VBench's consistency of a sequence of features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def sequence_score(features: Tensor) -> float | None:
    """How alike features [N, D] stay: the mean over i >= 1 of half of max(0, cos(f_i-1, f_i)) + max(0, cos(f_0, f_i)).

    1 is a frozen sequence; None if there are fewer than two.
    """
    if len(features) < 2:
        return None
    units = F.normalize(features.float(), dim=-1)
    after_before = (units[1:] * units[:-1]).sum(-1).clamp_min(0)
    after_first = (units[1:] @ units[0]).clamp_min(0)
    return float(((after_before + after_first) / 2).mean())
