"""A picture from a file, in the shape of a video frame."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from llrag_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")  # none that runs a program, as EPS does
MOST_PIXELS = 64_000_000  # of a picture: 8000x8000
HINT = "choose a PNG, JPEG or WebP file"
# Everything that Pillow raises about a damaged file.
DAMAGED = (
    *(OSError, ValueError, SyntaxError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError),
    *(MemoryError, RecursionError, struct.error, zlib.error),
)


class LargePictureError(UsageError):
    """A picture of more pixels than are read."""


def open_image(path: Path) -> Image.Image:
    """The picture of a file, upright and in RGB; a file that is missing, no picture or too large is a ``UsageError``.

    Pixels of 16 bits are scaled to 8, and floating-point ones are taken as 0 (black) to 1 (white).
    """
    try:
        if path.exists() and not path.is_file():
            reason = "it is a folder" if path.is_dir() else "it is not a regular file"
            raise UsageError(f"`{path}` cannot be read: {reason}", hint=HINT)
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as opened:
                if opened.width * opened.height > MOST_PIXELS:
                    size = f"{opened.width}x{opened.height}"
                    raise _too_large(path, f"has {size} pixels")
                return _in_rgb(ImageOps.exif_transpose(opened), path)
    except FileNotFoundError:
        raise UsageError(f"`{path}` does not exist", hint=HINT) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(path, "has too many pixels") from None
    except DAMAGED as error:
        text = (str(error) or type(error).__name__).splitlines()[0][:200]
        reason = "it is not an image" if isinstance(error, UnidentifiedImageError) else text
        raise UsageError(f"`{path}` cannot be read: {reason}", hint=HINT) from None


def _too_large(path: Path, problem: str) -> LargePictureError:
    most = f"{MOST_PIXELS // 10**6} million"
    return LargePictureError(f"`{path}` {problem}, more than {most}", hint="make the picture smaller")


def _in_rgb(picture: Image.Image, path: Path) -> Image.Image:
    """A picture in RGB. Pillow itself cuts off what is beyond 8 bits instead of scaling it."""
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture.convert("RGB")
    pixels = np.asarray(picture).astype(np.float64)
    white = 1.0 if picture.mode == "F" else 65_535.0
    if not np.isfinite(pixels).all() or np.min(pixels) < 0 or np.max(pixels) > white:
        raise UsageError(
            f"`{path}` has pixels outside of 0 to {white:g}", hint="save the picture with 8 or 16 bits a channel"
        )
    return Image.fromarray((pixels * (255 / white)).round().astype(np.uint8)).convert("RGB")


def read_image(path: Path, *, size: tuple[int, int]) -> Tensor:
    """One frame [1, 3, H, W] in [-1, 1] of a picture, scaled and cropped around its centre to (H, W)."""
    import torch

    fitted = ImageOps.fit(open_image(path), (size[1], size[0]), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy())
    return pixels.permute(2, 0, 1)[None] / 127.5 - 1
