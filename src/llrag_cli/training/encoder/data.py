"""Latents of videos as examples for the retrieval encoder."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llrag_cli.errors import LlragError, NoLatentsError, UsageError
from llrag_cli.runs.latents import LatentFolder, read_latents


@dataclass(frozen=True)
class Example:
    """``chunk`` frames of a video from ``start`` on."""

    video: int
    start: int


class LatentPool:
    """The videos of a folder, checked: all of one shape [C, H, W], finite everywhere, at least two.

    Files are mapped: what is in use is in memory, as far as there is room.
    """

    def __init__(self, folder: Path, *, on_file: Callable[[], None] = lambda: None) -> None:
        self.paths = LatentFolder(folder).files() if folder.is_dir() else []
        if not self.paths:
            raise NoLatentsError(folder)
        if len(self.paths) < 2:
            raise UsageError(
                f"there is one video in `{folder}`",
                hint="at least two are needed: one to learn from, one to validate on",
            )
        self._videos: list[Tensor] = []
        for path in self.paths:
            latents = read_latents(path).latents
            if not self._videos:
                self.shape: tuple[int, int, int] = (latents.shape[1], latents.shape[2], latents.shape[3])
            if tuple(latents.shape[1:]) != self.shape:
                raise LlragError(
                    f"`{path}` holds latents of {shape_text(latents.shape[1:])}, others of {shape_text(self.shape)}",
                    hint="an encoder is trained on the latents of one backbone",
                )
            self._videos.append(latents)
            on_file()
        self.lengths = [len(latents) for latents in self._videos]

    def __len__(self) -> int:
        return len(self.paths)

    def frames(self, video: int) -> Tensor:
        """All latents [F, C, H, W] of a video in float32."""
        return self._videos[video].float()

    def chunk(self, example: Example, length: int) -> Tensor:
        """The latents [length, C, H, W] of an example in float32; the last frame is repeated where a video ends."""
        frames = self._videos[example.video][example.start : example.start + length].float()
        short = length - len(frames)
        return frames if short <= 0 else torch.cat((frames, frames[-1:].expand(short, -1, -1, -1)))

    def split(self, *, validation: float, seed: int) -> tuple[list[int], list[int]]:
        """Videos to learn from and videos held out, both at least one."""
        order = random.Random(f"split {seed}").sample(range(len(self)), len(self))
        held_out = min(max(1, round(validation * len(self))), len(self) - 1)
        return sorted(order[held_out:]), sorted(order[:held_out])

    def drawn(self, videos: Sequence[int], *, chunk: int, per_video: int, seed: int, epoch: int) -> list[Example]:
        """The examples of an epoch, in order: random chunks of each video, the same for a seed and an epoch."""
        rng = random.Random(f"epoch {seed} {epoch}")
        examples = [
            Example(video, rng.randint(0, max(0, self.lengths[video] - chunk)))
            for video in videos
            for _ in range(per_video)
        ]
        rng.shuffle(examples)
        return examples

    def covering(self, videos: Sequence[int], *, chunk: int, most: int) -> list[Example]:
        """Up to ``most`` chunks of each video, at equal distances: what a validation looks at, always the same."""
        examples = []
        for video in videos:
            last = max(0, self.lengths[video] - chunk)
            count = min(most, 1 + last // chunk)
            examples += [Example(video, round(place * last / max(1, count - 1))) for place in range(count)]
        return examples


def batches(
    pool: LatentPool, examples: Sequence[Example], *, chunk: int, batch: int, process: tuple[int, int] = (0, 1)
) -> Iterator[tuple[Tensor, int]]:
    """This process's part [b, chunk, C, H, W] of each batch, and the size of the whole batch; one is read ahead.

    Process I of N takes every N-th example, so that the parts make up what a process alone would see. A tail with
    fewer examples than processes goes with the batch before it.
    """
    index, count = process
    starts = list(range(0, len(examples), batch))
    if len(starts) > 1 and len(examples) - starts[-1] < count:
        starts.pop()
    wholes = [examples[start:stop] for start, stop in zip(starts, [*starts[1:], len(examples)], strict=True)]

    def read(whole: Sequence[Example]) -> tuple[Tensor, int]:
        return torch.stack([pool.chunk(example, chunk) for example in whole[index::count]]), len(whole)

    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = [reader.submit(read, whole) for whole in wholes[:1]]
        for following in [*wholes[1:], None]:
            ready = coming.pop().result()
            if following is not None:
                coming.append(reader.submit(read, following))
            yield ready


def shape_text(shape: Sequence[int]) -> str:
    """A shape as people write it: 16x60x104."""
    return "x".join(map(str, shape))
