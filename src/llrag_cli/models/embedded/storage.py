"""Weights of the embedded backbone in a file: in half precision, or with matrices as bytes, half the size again."""

from __future__ import annotations

import torch

from llrag_cli.files.tensors import State

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


def unpacked(content: State) -> State:
    """Weights in float32 of a file that holds them in any floating type, or as ``packed`` does.

    Integers without a scale for each row stay what they are; a model does not load them.
    """
    result: State = {}
    for name, value in content.items():
        if name.endswith(SCALE) and name.removesuffix(SCALE) in content:
            continue
        scale = content.get(f"{name}{SCALE}")
        if value.dtype == torch.int8 and value.ndim >= 2 and scale is not None and scale.shape == value.shape[:1]:
            result[name] = value.float() * scale.float().view(-1, *(1,) * (value.ndim - 1))
        else:
            result[name] = value.float() if value.is_floating_point() else value
    return result
