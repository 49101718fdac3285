"""How fast a model is here, from a few blocks that are generated for nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.scenes.timeline import one_shot

TIMED = 2  # blocks, after as many as fill the window


@dataclass(frozen=True)
class TimedBlocks:
    """Blocks that were generated and decoded, and how long that took."""

    frames: tuple[Tensor, ...]  # of each block [1, t, 3, H, W], in [-1, 1], on the CPU
    seconds: float

    @property
    def frames_per_second(self) -> float:
        """Frames of video per second of work."""
        return sum(each.shape[1] for each in self.frames) / self.seconds


def time_blocks(
    pipeline: Pipeline, prompt: str, *, interrupted: Callable[[], bool] = lambda: False
) -> TimedBlocks | None:
    """Generate and decode a few blocks of a video whose window is full; None if it was interrupted between blocks.

    Nothing is written.
    """
    config = pipeline.config
    block = config.backbone.frames_per_block
    filling = -(-(config.memory.window or 0) // block) or 1
    frames, began = [], 0.0
    with pipeline.start(one_shot(prompt, config, latent_frames=block * (filling + TIMED))) as session:
        for number, made in enumerate(session):
            if interrupted():
                return None
            if number < filling - 1:
                continue
            decoded = made.frames.cpu()  # which waits for the device
            if number == filling - 1:
                began = time.perf_counter()
            else:
                frames.append(decoded)
        return TimedBlocks(tuple(frames), time.perf_counter() - began)
