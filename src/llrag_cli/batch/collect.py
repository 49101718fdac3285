"""Latents for training: videos of a prompt pool, made by a frozen backbone and kept before they are decoded."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.runs.latents import LatentFolder
from llrag_cli.runs.video import VideoSink, VideoWriter


@dataclass(frozen=True)
class Chosen:
    """A prompt and its number in the prompt file, which is also its sample number for the noise."""

    number: int
    prompt: str


def choose(prompts: Sequence[str], *, ratio: float, seed: int, shard: tuple[int, int]) -> list[Chosen]:
    """A share of the prompts, drawn with a seed, and of those the ones of worker I of N (counted from 1).

    Every worker draws the same share, so that together they make each video once.
    """
    count = max(1, round(ratio * len(prompts)))
    drawn = sorted(random.Random(seed).sample(range(len(prompts)), count))
    worker, workers = shard
    return [Chosen(number, prompts[number]) for number in drawn[worker - 1 :: workers]]


def collect(
    pipeline: Pipeline,
    chosen: Sequence[Chosen],
    folder: LatentFolder,
    *,
    seconds: float,
    seed: int,
    batch: int = 1,
    preview: bool = False,
    on_block: Callable[[int], None] = lambda videos: None,
) -> Iterator[list[Path]]:
    """Make the videos that are not in the folder yet, ``batch`` at a time; yields the files of each batch.

    A video depends on prompt, seed and number alone: not on the batch, the worker, or an interruption.
    """
    config = pipeline.config
    missing = [each for each in chosen if not folder.file(each.number).exists()]
    for first in range(0, len(missing), batch):
        together = missing[first : first + batch]
        made = []
        for block in pipeline.blocks(
            [each.prompt for each in together], seconds=seconds, seed=seed, samples=[each.number for each in together]
        ):
            made.append(block.latents.cpu())
            on_block(len(together))
        latents = torch.cat(made, dim=1)  # [B, F, C, H, W]
        files = []
        for each, rows in zip(together, latents, strict=True):
            about = {
                "prompt": each.prompt,
                "number": each.number,
                "seed": seed,
                "backbone": config.name,
                "method": config.method,
            }
            if preview:
                writer = VideoWriter(
                    folder.file(each.number).with_suffix(".mp4"),
                    fps=config.backbone.fps,
                    upscale=config.video.upscale,
                    crf=config.video.crf,
                )
                with VideoSink(pipeline.decoder.stream(), writer) as sink:
                    for part in rows.split(config.backbone.frames_per_block):
                        sink.put(part[None].to(pipeline.backbone.device))
            files.append(folder.write(each.number, rows, about))
        yield files
