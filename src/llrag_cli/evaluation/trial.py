"""What the videos of a benchmark will cost, from a few blocks that are generated and scored for it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.engine.timing import time_blocks
from llrag_cli.evaluation.metrics.inputs import Backend
from llrag_cli.evaluation.metrics.score import score
from llrag_cli.evaluation.study import unit_range
from llrag_cli.models.family import family_of
from llrag_cli.runs.video import VideoWriter


@dataclass(frozen=True)
class Rates:
    """Seconds of computing, and bytes, for each second of video."""

    generating: float
    scoring: float
    bytes: float


def trial(config: RunConfig, prompt: str, backend: Backend, *, device: str, dtype: str) -> Rates:
    """Generate and score a few blocks of a video, with a full window. Nothing is written."""
    pipeline = Pipeline.load(config, device=device, dtype=dtype, prompts=[prompt])
    blocks = time_blocks(pipeline, prompt)
    assert blocks is not None
    videos = unit_range(blocks.frames)  # [1, T, 3, H, W]
    seconds = videos.shape[1] / config.backbone.fps
    began = time.perf_counter()
    score(videos[0], fps=config.backbone.fps, backend=backend, sprites=family_of(config).shows_sprites)
    scoring = (time.perf_counter() - began) / seconds
    size = mp4_bytes(videos[0], fps=config.backbone.fps, crf=config.video.crf)
    return Rates(blocks.seconds / seconds, scoring, size / seconds)


def mp4_bytes(frames: Tensor, *, fps: int, crf: int) -> int:
    """The size of frames [T, 3, H, W] in [0, 1] as a video."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trial.mp4"
        writer = VideoWriter(file, fps=fps, crf=crf)
        writer.write(2 * frames - 1)
        writer.close()
        return file.stat().st_size
