"""What the videos of a benchmark will cost, from a few blocks that are generated and scored for it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from llrag_cli.config import RunConfig
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.evaluation.metrics.inputs import Backend
from llrag_cli.evaluation.metrics.score import score
from llrag_cli.evaluation.study import unit_range
from llrag_cli.models.family import family_of
from llrag_cli.scenes.timeline import one_shot

TIMED = 2  # blocks, after as many as fill the window


@dataclass(frozen=True)
class Rates:
    """Seconds of computing for each second of video."""

    generating: float
    scoring: float


def trial(config: RunConfig, prompt: str, backend: Backend, *, device: str, dtype: str) -> Rates:
    """Generate and score a few blocks of a video, with a full window. Nothing is written."""
    block = config.backbone.frames_per_block
    filling = -(-(config.memory.window or 0) // block) or 1
    pipeline = Pipeline.load(config, device=device, dtype=dtype, prompts=[prompt])
    frames = []
    with pipeline.start(one_shot(prompt, config, latent_frames=block * (filling + TIMED))) as session:
        began = 0.0
        for number, made in enumerate(session):
            if number == filling - 1:
                began = time.perf_counter()
            elif number >= filling:
                frames.append(made.frames)
        generating = time.perf_counter() - began
    videos = unit_range(frames)  # [1, T, 3, H, W]
    seconds = videos.shape[1] / config.backbone.fps
    began = time.perf_counter()
    score(videos[0].cpu(), fps=config.backbone.fps, backend=backend, sprites=family_of(config).shows_sprites)
    return Rates(generating / seconds, (time.perf_counter() - began) / seconds)
