"""Rotary position embedding of video tokens at any frame times, without an end."""

from __future__ import annotations

import torch
from torch import Tensor, nn

THETA = 10000.0


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the channel pairs (2j, 2j+1) of x [B, L, heads, D] by the angles of a table.

    The table is complex64 [B or 1, L, 1, D/2]. The product is float32, cast back to x's type.
    """
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).type_as(x)


class FrameRotary(nn.Module):
    """Takes the place of ``WanTransformer3DModel.rope``: it is told the time of the block's frames.

    Of the D/2 channel pairs of a head, a third (rounded down) each turn with row and column, the rest
    with the frame's time; frequencies are THETA ** (-2j/d), angles float64 (RoFormer, eq. 15).
    """

    def __init__(self, head_dim: int, patch_size: tuple[int, int, int]) -> None:
        super().__init__()
        pairs = head_dim // 2
        space = pairs // 3
        self.patch_size = patch_size
        self.frequencies = tuple(
            THETA ** (-torch.arange(count, dtype=torch.float64) / count) for count in (pairs - 2 * space, space, space)
        )
        self.times = torch.zeros(1, dtype=torch.float64)
        self._cached: tuple[object, Tensor] | None = None

    def table(self, times: Tensor, *, height: int, width: int) -> Tensor:
        """Unit complex numbers [*, F * height * width, 1, D/2] for frame times [*, F], in token order."""
        angles = self.angles(times.reshape(-1).cpu().double(), height=height, width=width)
        table = torch.polar(torch.ones_like(angles), angles).to(torch.complex64)  # [N*F, h*w, D/2]
        return table.reshape(*times.shape[:-1], -1, 1, table.shape[-1])

    def angles(self, times: Tensor, *, height: int, width: int) -> Tensor:
        """Angles [F, height * width, D/2] in radians, float64."""
        by_time, by_row, by_column = self.frequencies
        shape = (len(times), height, width, -1)
        rows, columns = (torch.arange(size, dtype=torch.float64) for size in (height, width))
        parts = (
            (times[:, None] * by_time)[:, None, None].expand(shape),
            (rows[:, None] * by_row)[None, :, None].expand(shape),
            (columns[:, None] * by_column)[None, None].expand(shape),
        )
        return torch.cat(parts, dim=-1).flatten(1, 2)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The table [1, L, 1, D/2] of the block's own frames, for input [B, C, T, H, W]."""
        height, width = (
            size // patch for size, patch in zip(hidden_states.shape[3:], self.patch_size[1:], strict=True)
        )
        key = (tuple(self.times.tolist()), height, width, hidden_states.device)
        if self._cached is None or self._cached[0] != key:
            table = self.table(self.times, height=height, width=width)[None].to(hidden_states.device)
            self._cached = (key, table)
        return self._cached[1]
