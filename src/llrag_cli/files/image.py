"""A picture from a file, in the shape of a video frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from llrag_cli.errors import UsageError


def read_image(path: Path, *, size: tuple[int, int]) -> Tensor:
    """One frame [1, 3, H, W] in [-1, 1] of a picture, scaled and cut around its middle to (H, W)."""
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise UsageError(f"there is no picture `{path}`", hint="`--image` names a PNG, JPEG or WebP file") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UsageError(f"`{path}` cannot be read: {reason}", hint="give a PNG, JPEG or WebP file") from None
    fitted = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy())
    return pixels.permute(2, 0, 1)[None] / 127.5 - 1
