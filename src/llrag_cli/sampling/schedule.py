"""Timesteps and sigmas of few-step flow matching.

A timestep runs from 1000 (noise) to 0 (clean); sigma = timestep / 1000 is the share of noise in
x_t = (1 - sigma) x0 + sigma eps. The table is that of the flow-matching schedulers with a shift
(Esser et al. 2024, eq. 23), as used by Self-Forcing and related models.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

TRAIN_STEPS = 1000


class FlowMatchSchedule:
    """The table for a shift, and the few timesteps at which a block is denoised.

    ``steps`` are integers from 1000 down; ``first_steps`` replace them in the first generated block (Causal-Forcing's
    ``denoising_step_list_first_chunk``). Warped, step n becomes entry 1000 - n of the shifted table (fractional
    timesteps); otherwise they are timesteps themselves.
    """

    def __init__(
        self, *, steps: Sequence[int], shift: float, warp: bool = True, first_steps: Sequence[int] | None = None
    ) -> None:
        line = torch.linspace(1, 0, TRAIN_STEPS + 1)[:-1]
        self.sigmas = shift * line / (1 + (shift - 1) * line)  # [1000], float32, decreasing from 1
        self.timesteps = TRAIN_STEPS * self.sigmas
        read = self.warp if warp else partial(torch.tensor, dtype=torch.float32)
        self.steps: Tensor = read(steps)
        self.first_steps: Tensor = self.steps if first_steps is None else read(first_steps)

    def warp(self, steps: Sequence[int]) -> Tensor:
        """Timesteps [S] in the shifted table for integer steps in 0..1000; 0 stays 0."""
        extended = torch.cat((self.timesteps, torch.zeros(1)))
        return extended[TRAIN_STEPS - torch.tensor(steps)]

    def sigma(self, timestep: Tensor) -> Tensor:
        """Sigma of the table entry nearest to each timestep, the first on a tie.

        The table ends just above zero, so timestep 0 gives its last entry, not sigma 0.
        """
        gaps = (self.timesteps.to(timestep.device)[:, None] - timestep.flatten().float()).abs()
        return self.sigmas.to(timestep.device)[gaps.argmin(dim=0)].view(timestep.shape)

    def clean(self, noisy: Tensor, flow: Tensor, timestep: Tensor) -> Tensor:
        """The prediction x0 = x_t - sigma flow, in float64 and cast back.

        noisy and flow share one shape [N, ...]; timestep is [N] or a scalar.
        """
        sigma = _along(self.sigma(timestep).double(), noisy)
        return (noisy.double() - sigma * flow.double()).to(noisy.dtype)

    def noised(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """x_t = (1 - sigma) x0 + sigma noise, in float32 and cast back; shapes as in ``clean``."""
        sigma = _along(self.sigma(timestep), clean)
        return ((1 - sigma) * clean.float() + sigma * noise.float()).to(clean.dtype)


def _along(values: Tensor, like: Tensor) -> Tensor:
    """View values [N] (or a scalar) so that they broadcast along the leading axis of ``like`` [N, ...]."""
    return values.view(-1, *(1,) * (like.ndim - 1)) if values.ndim else values
