"""Weights of the embedded backbone in a file: in half precision, or with matrices as bytes, half the size again."""

from __future__ import annotations

import torch
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.files.guarded import shortened
from llrag_cli.files.tensors import State, require_finite, require_floating

SCALE = ".scale"  # ends the name of the scales [rows] of a matrix that is stored as bytes
SMALLEST = 4096  # elements of a tensor that is worth it


def packed(state: State) -> State:
    """Matrices as int8 with a scale for each row, whose largest absolute value is 127; everything else as float16."""
    result: State = {}
    for name, value in state.items():
        if value.ndim < 2 or value.numel() < SMALLEST:
            result[name] = value.half().contiguous()
            continue
        rows = value.float().flatten(1)
        scale = rows.abs().amax(dim=1).clamp_min(1e-12) / 127
        result[name] = (rows / scale[:, None]).round().to(torch.int8).view_as(value).contiguous()
        result[f"{name}{SCALE}"] = scale
    return result


def unpacked(content: State, *, source: str = "weights") -> State:
    """Weights in float32 of a file that holds them in any floating type, or as ``packed`` does.

    Raises ``LlragError`` for bytes without scales, scales without bytes, scales that ``packed`` does not write, and
    values that are not finite in float32.
    """
    result: State = {}
    for name, value in content.items():
        matrix = name.removesuffix(SCALE)
        if name.endswith(SCALE) and matrix in content and not matrix.endswith(SCALE):
            continue
        scale = content.get(f"{name}{SCALE}")
        if value.dtype != torch.int8 and scale is None:
            require_floating({name: value}, source=source)
            result[name] = value.float()
            continue
        _require_packed(name, value, scale, source=source)
        assert scale is not None
        result[name] = value.float() * scale.float().view(-1, *(1,) * (value.ndim - 1))
    require_finite(result, source=source)
    return result


def _require_packed(name: str, value: Tensor, scale: Tensor | None, *, source: str) -> None:
    """Raise an error unless a matrix is stored as bytes, with a positive scale for each of its rows."""
    shown = shortened(name)
    if scale is None:
        problem = f"`{shown}` in int8, without scales"
    elif value.dtype != torch.int8 or value.ndim < 2:
        problem = f"scales for `{shown}`, which is not a matrix of bytes"
    elif scale.shape != value.shape[:1]:
        problem = f"scales of shape {[*scale.shape]} for the {len(value)} rows of `{shown}`"
    elif not scale.is_floating_point() or not (scale.float() > 0).all() or not scale.float().isfinite().all():
        problem = f"scales of `{shown}` that are not positive numbers"
    else:
        return
    raise LlragError(f"`{source}` has {problem}", hint="the file is damaged, or was written by another program")
