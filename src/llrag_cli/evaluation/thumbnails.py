"""Small pictures of latent frames: of a video, and of the pictures, clips and finished runs that are its references."""

from __future__ import annotations

from collections.abc import Collection
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.errors import LlragError
from llrag_cli.files.durable import require_own
from llrag_cli.files.html import data_url
from llrag_cli.files.image import open_image
from llrag_cli.runs.video import open_video, read_frames
from llrag_cli.scenes.sources import is_picture, is_run
from llrag_cli.scenes.timeline import ReferenceSpan, Timeline

THUMBNAIL = 120  # pixels, the longer side


def thumbnails(video: Path, frames: Collection[int], config: RunConfig, *, side: int = THUMBNAIL) -> dict[int, Tensor]:
    """Small pictures [h, w, 3] in [0, 1] of the latent frames that the file has, each of its last video frame."""
    wanted = {config.video_frames(frame + 1) - 1: frame for frame in frames}
    pictures: dict[int, Tensor] = {}
    for number, image in enumerate(read_frames(video)):
        if number in wanted:
            scale = max(1, max(image.shape[1:]) // side)
            pictures[wanted[number]] = torch.nn.functional.avg_pool2d(image[None], scale)[0].permute(1, 2, 0)
        if len(pictures) == len(wanted):
            break
    return pictures


def reference_thumbnails(timeline: Timeline, frames: Collection[int], config: RunConfig) -> dict[int, Tensor]:
    """Pictures like those of ``thumbnails`` of frames of references, by their negative numbers.

    References whose files are missing or cannot be read have none: a run can be inspected without them.
    """
    pictures: dict[int, Tensor] = {}
    for reference in timeline.references:
        span = timeline.reference_frames[reference.name]
        wanted = {frame - span.start for frame in frames if frame in span}
        try:
            found = _of_reference(reference, wanted, config) if wanted else {}
        except (LlragError, OSError):
            continue
        pictures |= {span[number]: picture for number, picture in found.items()}
    return pictures


def thumbnail_url(picture: Tensor) -> str:
    """A picture [h, w, 3] in [0, 1] as a data URL."""
    file = BytesIO()
    Image.fromarray((255 * picture).round().byte().numpy()).save(file, format="WEBP", quality=60, method=6)
    return data_url(file.getvalue(), "image/webp")


def _of_reference(reference: ReferenceSpan, frames: Collection[int], config: RunConfig) -> dict[int, Tensor]:
    """Pictures of the frames of a reference, which are counted from 0."""
    if is_run(reference.path):
        require_own(reference.path / "video.mp4")
        return thumbnails(reference.path / "video.mp4", frames, config)
    if is_picture(reference.path):
        picture = _fitted(open_image(reference.path), config)
        return dict.fromkeys(frames, picture)
    return _of_clip(reference.path, frames, config)


def _of_clip(clip: Path, frames: Collection[int], config: RunConfig) -> dict[int, Tensor]:
    """Pictures of a clip, which may have another frame rate than the video."""
    opened = open_video(clip)
    seconds = {frame: (config.video_frames(frame + 1) - 1) / config.backbone.fps for frame in frames}
    wanted = {frame: round(time * opened.fps) for frame, time in seconds.items()}
    pictures: dict[int, Tensor] = {}
    for number, image in enumerate(opened.frames):
        pixels = (255 * image.permute(1, 2, 0)).round().byte().numpy() if number in wanted.values() else None
        if pixels is not None:
            picture = _fitted(Image.fromarray(np.ascontiguousarray(pixels)), config)
            pictures |= {frame: picture for frame, place in wanted.items() if place == number}
        if number >= max(wanted.values()):
            opened.close()
            break
    return pictures


def _fitted(image: Image.Image, config: RunConfig, *, side: int = THUMBNAIL) -> Tensor:
    """A small picture [h, w, 3] in [0, 1], cropped as the video is."""
    scale = max(1.0, max(config.width, config.height) / side)
    size = (max(1, round(config.width / scale)), max(1, round(config.height / scale)))
    fitted = ImageOps.fit(image, size, Image.Resampling.LANCZOS)
    return torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy()) / 255
