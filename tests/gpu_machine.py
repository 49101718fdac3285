"""Full-size videos on the fake GPU, counted block by block; also for ``benchmarks/gpu_counts.py``."""

from __future__ import annotations

import gc
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fakecuda import FakeGPU, Wait
from llrag_cli.cache.sharing import Sharing
from llrag_cli.config import ModelShape
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.evaluation.random_weights import random_pipeline
from llrag_cli.memory.history import average_pool
from llrag_cli.presets import load_config
from llrag_cli.runs.sink import VideoSink

CUDA = torch.device("cuda")


@dataclass
class Counted:
    """What a block had counted when the next one began."""

    small_copies: Counter[str]
    host_waits: Counter[str]
    waits: list[Wait]
    moved_to_device: int
    moved_to_host: int
    kernels: Counter[str]
    traffic: Counter[str]
    flops: Counter[str]

    @classmethod
    def of(cls, gpu: FakeGPU) -> Counted:
        """What a GPU has counted since it was reset."""
        moved = gpu.moved("device"), gpu.moved("host")
        return cls(gpu.small_copies, gpu.host_waits, gpu.waits, *moved, gpu.kernels, gpu.traffic, gpu.flops)


@dataclass
class Video:
    """A video that was made."""

    peak: int = 0
    owners: dict[str, int] = field(default_factory=dict)  # of the peak
    blocks: list[Counted] = field(default_factory=list)

    @property
    def steady(self) -> Counted:
        """A block in the middle of a video."""
        return self.blocks[-2]  # the last one looks up nothing for a next one


class Frames:
    """A file that is not written; it keeps what it was handed."""

    def __init__(self) -> None:
        self.written: list[Tensor] = []

    def write(self, frames: Tensor) -> None:
        self.written.append(frames)

    def close(self) -> None: ...


class Passing:
    """A decoder of small frames, where decoding is not what is counted."""

    def decode(self, latents: Tensor) -> Tensor:
        return latents[:, :, :3]


@dataclass(frozen=True)
class Machine:
    """The fake GPU with weights on it."""

    gpu: FakeGPU
    pipeline: Pipeline

    def make(
        self,
        *settings: str,
        preset: str = "self-forcing",
        memory: str = "nearest",
        blocks: int = 11,
        scratch: Path | None = None,
        switch: Callable[[Any, int], None] = lambda session, block: None,
    ) -> Video:
        """A video, decoded on a thread as a run does it; the frames retrieved are random ones."""
        config = load_config(preset, memory=memory, settings=settings)
        size, now, gpu, before = config.backbone.frames_per_block, 0, self.gpu, self.gpu.live

        def read(tensor: Tensor) -> Any:
            if tensor.dtype == torch.bool:
                return torch.ones(tensor.shape, dtype=torch.bool).tolist()
            if tensor.dtype == torch.uint8:  # small frames
                return torch.zeros(tensor.shape).tolist()
            assert tensor.ndim == 3 and len(tensor) == 2  # frames and their similarities, [2, B, K]
            last = size * (now + 1) - config.memory.window - config.memory.guard  # type: ignore[operator,union-attr]
            rows = [random.Random(now).sample(range(1, 1 + last), tensor.shape[2]) for _ in range(tensor.shape[1])]
            return [rows, [[0.5] * tensor.shape[2] for _ in rows]]

        gpu.read = read
        gpu.races.clear()
        gpu.runtime.calls.clear()
        gpu.forget_peak()
        pipeline = replace(self.pipeline, config=config)
        if getattr(config.memory, "keys", "average") == "average":
            pipeline = replace(pipeline, encode_key=average_pool)
        video, frames = Video(), Frames()
        session = pipeline.start("a random embedding", seconds=blocks * size / 4, scratch=scratch)
        with VideoSink(Passing(), frames) as queue, session:
            gpu.reset()
            for block in session:
                queue.put(block.latents)
                now = block.index + 1
                video.blocks.append(Counted.of(gpu))
                gpu.reset()
                switch(session, now)
        video.peak, video.owners = gpu.peak, gpu.peak_owners
        del session, queue, block
        gc.collect()
        assert all(each.dtype == torch.uint8 for each in frames.written)
        assert gpu.races == []
        assert gpu.live - before < 100_000  # but for timesteps, nothing is left
        assert gpu.runtime.ranges == {}  # all host memory is unlocked
        return video


@contextmanager
def fake_machine(layers: int, *, sharing: Sharing = "none") -> Iterator[Machine]:
    """A fake GPU with Self-Forcing on it, with so many layers."""
    config = load_config("self-forcing")
    with FakeGPU() as gpu:
        shape = ModelShape(num_layers=layers)
        how = Execution(attention="native", decoder_layout="contiguous", sharing=sharing)  # trials would be kept
        pipeline = random_pipeline(config, shape, device=CUDA, dtype=torch.bfloat16, how=how)
        yield Machine(gpu, pipeline)
