"""What the rows of a study will cost, from a few blocks that are generated and judged for it."""

from __future__ import annotations

import io
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.evaluation.study import image_of, unit_range
from llrag_cli.evaluation.study_plan import Step
from llrag_cli.evaluation.trial import mp4_bytes
from llrag_cli.scenes.timeline import one_shot
from llrag_cli.world.consistency import looks

PROMPT = "a large red circle bounces around on a striped blue wall"
TIMED = 2  # blocks, after as many as fill the window
LARGEST = 8  # videos of a trial's batch; in a larger one, a video takes as long


@dataclass(frozen=True)
class Rates:
    """Seconds of computing for each latent frame of one video, and bytes."""

    generating: float  # decoded and judged
    replaying: float  # of a given frame
    picture: float  # bytes of one frame as PNG
    video: float  # bytes of a latent frame as mp4

    def seconds(self, steps: Iterable[Step]) -> float:
        """How long some steps take."""
        return sum(self.generating * step.generated + self.replaying * step.replayed for step in steps)


def trial(pipeline: Pipeline, *, videos: int) -> Rates:
    """Generate, judge and replay a few blocks of a batch of so many videos, with a full window. Nothing is kept."""
    config, batch = pipeline.config, min(videos, LARGEST)
    block, ratio = config.backbone.frames_per_block, config.latent_space.temporal_ratio
    filling = -(-(config.memory.window or 0) // block) or 1
    frames, latents, began = [], [], 0.0
    with pipeline.start(
        one_shot(PROMPT, config, latent_frames=block * (filling + TIMED)), seed=[*range(batch)]
    ) as made:
        for number, each in enumerate(made):
            latents.append(each.latents)
            decoded = unit_range([each.frames.cpu()])  # which waits for the device
            if number < filling:
                began = time.perf_counter()
            else:
                frames.append(decoded)
                for video in decoded[:, ratio - 1 :: ratio]:
                    looks(video)
    generated = time.perf_counter() - began
    replayed = _replayed(pipeline, torch.cat(latents, dim=1)) - generated / TIMED
    pictures = torch.cat(frames, dim=1)  # [B, T, 3, H, W]
    return Rates(
        generating=generated / (TIMED * block * batch),
        replaying=max(0.0, replayed) / (len(latents) * block * batch),
        picture=_png_bytes(pictures[0, -1]),
        video=mp4_bytes(pictures[0], fps=config.backbone.fps, crf=config.video.crf) / (TIMED * block),
    )


def _replayed(pipeline: Pipeline, latents: Tensor) -> float:
    """Seconds until one block is generated after given ones [B, F, C, h, w]."""
    count = latents.shape[1] + pipeline.config.backbone.frames_per_block
    began = time.perf_counter()
    timeline = one_shot(PROMPT, pipeline.config, latent_frames=count)
    with pipeline.start(timeline, seed=[*range(len(latents))], committed=latents) as session:
        for each in session:
            last = each
        last.frames.cpu()
    return time.perf_counter() - began


def _png_bytes(frame: Tensor) -> int:
    buffer = io.BytesIO()
    image_of(frame).save(buffer, format="PNG")
    return len(buffer.getvalue())
