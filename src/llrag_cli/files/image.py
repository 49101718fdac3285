"""A picture from a file, in the shape of a video frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from llrag_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


def open_image(path: Path) -> Image.Image:
    """The picture of a file, upright and in RGB; a file that is missing or no picture is a ``UsageError``."""
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError:
        raise UsageError(f"`{path}` does not exist", hint="choose a PNG, JPEG or WebP file") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UsageError(f"`{path}` cannot be read: {reason}", hint="choose a PNG, JPEG or WebP file") from None


def read_image(path: Path, *, size: tuple[int, int]) -> Tensor:
    """One frame [1, 3, H, W] in [-1, 1] of a picture, scaled and cropped around its centre to (H, W)."""
    import numpy as np
    import torch

    fitted = ImageOps.fit(open_image(path), (size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy())
    return pixels.permute(2, 0, 1)[None] / 127.5 - 1
