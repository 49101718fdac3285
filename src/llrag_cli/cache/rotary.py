"""Rotary position embedding of video tokens at any frame times."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10000.0
TABLES = 3  # that a session keeps: of a block's passes, of its clean pass, of a draft


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the channel pairs (2j, 2j+1) of x [B, L, heads, D] by the angles of a table.

    The table [B or 1, L, 1, D/2, 2] holds float32 cosines and sines. The product is float32, cast back to x's type.
    """
    return _turned(x, table).type_as(x)


def rotate_into(target: Tensor, x: Tensor, table: Tensor) -> None:
    """As ``rotate``, written to a target [B, L, heads, D], and cast to its type as it is written."""
    target.copy_(_turned(x, table))


def _turned(x: Tensor, table: Tensor) -> Tensor:
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # the compiler fuses real products, and knows no complex ones
        (even, odd), (cosine, sine) = pairs.unbind(-1), table.unbind(-1)
        turned = torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    return turned.flatten(-2)


class RotaryTables:
    """Rotary tables of a head of ``head_dim`` channels for any frame times.

    Of the D/2 channel pairs of a head, a third (rounded down) each turn with row and column, the rest with the frame's
    time; frequencies are THETA ** (-2j/d), angles float64 (RoFormer, eq. 15).
    """

    def __init__(self, head_dim: int) -> None:
        pairs = head_dim // 2
        space = pairs // 3
        self.frequencies = tuple(
            THETA ** (-torch.arange(count, dtype=torch.float64) / count) for count in (pairs - 2 * space, space, space)
        )
        self._space: dict[tuple[int, int], Tensor] = {}

    def table(self, times: Tensor, *, height: int, width: int) -> Tensor:
        """Cosines and sines [*, F * height * width, 1, D/2, 2] for frame times [*, F], in token order."""
        space = self._spatial(height, width)  # [h*w, pairs of rows and columns]
        time = _unit(times.reshape(-1, 1).cpu().double() * self.frequencies[0])  # [N*F, pairs of time]
        shape = (len(time), len(space), -1)
        table = torch.cat((time[:, None].expand(shape), space[None].expand(shape)), dim=-1)
        return torch.view_as_real(table.reshape(*times.shape[:-1], -1, 1, table.shape[-1]))

    def _spatial(self, height: int, width: int) -> Tensor:
        if (height, width) not in self._space:
            rows, columns = (torch.arange(size, dtype=torch.float64)[:, None] for size in (height, width))
            by_row = _unit(rows * self.frequencies[1])[:, None].expand(height, width, -1)
            by_column = _unit(columns * self.frequencies[2])[None].expand(height, width, -1)
            self._space[height, width] = torch.cat((by_row, by_column), dim=-1).flatten(0, 1)
        return self._space[height, width]


def _unit(angles: Tensor) -> Tensor:
    """exp(i angle) in complex64, from float64 angles in radians."""
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
