"""Motion by dense optical flow: smoothness, and whether a clip moves at all."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llrag_cli.evaluation.metrics.inputs import Flow

DYNAMIC_FPS = 8  # frame rate at which VBench measures motion


def dis_flow() -> Flow:
    """Dense Inverse Search (Kroeger et al. 2016) of OpenCV, medium preset: no weights. Needs the extra ``metrics``."""
    import cv2

    search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def flow(one: Tensor, other: Tensor) -> Tensor:
        gray = [cv2.cvtColor(_image(frame), cv2.COLOR_RGB2GRAY) for frame in (one, other)]
        return torch.from_numpy(search.calc(gray[0], gray[1], None)).permute(2, 0, 1)

    return flow


def _image(frame: Tensor) -> Any:
    return (255 * frame).round().byte().permute(1, 2, 0).contiguous().numpy()


def warped(frame: Tensor, flow: Tensor) -> Tensor:
    """A frame [3, H, W] sampled at every pixel moved by ``flow`` [2, H, W] pixels."""
    _, height, width = frame.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    points = torch.stack(((x + flow[0] + 0.5) * 2 / width - 1, (y + flow[1] + 0.5) * 2 / height - 1), dim=-1)
    return F.grid_sample(frame[None], points[None].float(), padding_mode="border", align_corners=False)[0]


def smoothness(clip: Tensor, flow: Flow) -> float | None:
    """VBench's motion smoothness of a clip [T, 3, H, W]: 1 - the error of odd frames predicted from their neighbours.

    The prediction is the mean of both neighbours, each warped half way to the other. None for fewer than three frames.
    """
    errors = []
    for middle in range(1, len(clip) - 1, 2):
        before, after = clip[middle - 1], clip[middle + 1]
        there, back = flow(before, after), flow(after, before)
        guess = (warped(before, -0.5 * there) + warped(after, -0.5 * back)) / 2
        errors.append(float((guess - clip[middle]).abs().mean()))
    return 1 - sum(errors) / len(errors) if errors else None


def is_dynamic(clip: Tensor, flow: Flow, *, fps: float) -> bool | None:
    """VBench's dynamic degree of a clip [T, 3, H, W]: whether enough pairs at about 8 fps move enough.

    A pair does if the mean of its largest 5 % of displacements exceeds 6 pixels at a shorter side of 256; of n sampled
    frames, round(4n/16) pairs must.
    """
    sampled = clip[:: max(1, round(fps / DYNAMIC_FPS))]
    if len(sampled) < 2:
        return None
    least = 6 * min(clip.shape[2:]) / 256
    moving = 0
    for one, other in itertools.pairwise(sampled):
        lengths = flow(one, other).norm(dim=0).flatten()
        moving += bool(lengths.topk(max(1, len(lengths) // 20)).values.mean() > least)
    return moving >= max(1, round(4 * len(sampled) / 16))
