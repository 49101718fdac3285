"""The optimisers of the embedded model: Muon for matrices, AdamW for everything else."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024); a kernel [out, in, k, k] counts as one matrix.

    torch's own Muon orthogonalises in bfloat16, a hundred times slower than float32 on most CPUs, and
    does not take convolution kernels.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters from their gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)  # Nesterov
                rows, columns = update.shape
                scale = 0.2 * math.sqrt(max(rows, columns))  # as large as an Adam step (Moonshot's rule)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(orthogonal(update).view_as(parameter), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor, *, iterations: int = 5) -> Tensor:
    """Approximately the nearest semi-orthogonal matrix, by a quintic Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if wide else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if wide else x


# First and last layers, tables, and everything that reads the prompt: mostly the past predicts the present without it,
# so its gradients are noise, which Muon, whose updates are all equally large, would turn into a random walk.
_EDGES = ("patch_embedding", "proj_out", "table", "text.", "text_embedder", "attn2")


def optimizers(model: nn.Module, *, matrix_lr: float, other_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices of the network, AdamW for its first and last layers, norms and biases."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim >= 2 and min(parameter.shape[0], parameter[0].numel()) >= 32
        edge = any(part in name for part in _EDGES)
        (inner if matrix and not edge else outer).append(parameter)
    return [
        Muon(inner, lr=matrix_lr, weight_decay=0.01),
        torch.optim.AdamW(outer, lr=other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]
