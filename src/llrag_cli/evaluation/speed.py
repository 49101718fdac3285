"""Speed of generation: memories take turns, block by block, in one process, so that noise slows all of them alike.

A first block of each memory warms the process up. Then each memory writes a video as a run does, decoding and writing
while the next block is computed: this gives the latency of the first frames, and the rate at which frames reach the
file. Then all memories continue their videos in turns, decoding and writing after each block: this gives the time of
each part, and ratios from pairs of blocks that were computed one right after the other.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llrag_cli.config import ModelShape, RunConfig
from llrag_cli.engine.determinism import set_deterministic
from llrag_cli.engine.devices import find_device, find_dtype
from llrag_cli.engine.execution import Execution
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.evaluation.random_weights import RandomText, random_pipeline
from llrag_cli.evaluation.statistics import interval
from llrag_cli.files.paths import weights_folder
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.family import family_of
from llrag_cli.planning import Budget, plan
from llrag_cli.runs.sink import VideoSink
from llrag_cli.runs.statistics import peak_memory
from llrag_cli.runs.video import VideoWriter

GENERATING = {  # part of a block: the laps of ``rollout`` it consists of
    "denoise": ("denoise",),
    "clean_pass": ("update_cache",),
    "retrieval": ("retrieve", "encode"),  # search, and the keys of new frames
    "gather": ("gather",),  # keys and values of the context, from window and archive
}
PARTS = (*GENERATING, "decode", "write")


@dataclass
class Times:
    """One memory's times, in seconds; lists have one entry a block."""

    first_frames: float  # from the embedded prompt until the first block's frames are handed to ffmpeg
    streamed: float  # per block, with decoding and writing in parallel to computing the next one
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    @property
    def generating(self) -> list[float]:
        """Each block without decoding and writing."""
        return [sum(times) for times in zip(*(self.parts[part] for part in GENERATING), strict=True)]

    @property
    def whole(self) -> list[float]:
        """Each block with decoding and writing after it."""
        return [sum(times) for times in zip(*self.parts.values(), strict=True)]

    @property
    def shares(self) -> dict[str, float]:
        """Share of each part in the total time; they sum to 1."""
        total = sum(self.whole)
        return {part: sum(times) / total for part, times in self.parts.items()}


def steady_after(config: RunConfig) -> int:
    """Blocks until block times are stable: the window is full, and every block retrieves K frames."""
    memory = config.memory
    if memory.window is None:
        return 1
    frames = memory.window
    if isinstance(memory, RetrievalMemory) and memory.retrieves:
        frames += memory.guard + memory.retrieved
    return 1 + math.ceil(frames / config.backbone.frames_per_block)


def seconds_of(config: RunConfig, *, blocks: int, warmup: int) -> float:
    """Length of the video that each memory writes."""
    latent_frames = (warmup + 2 * blocks) * config.backbone.frames_per_block
    return config.video_frames(latent_frames) / config.backbone.fps


def plans_of(
    configs: Mapping[str, RunConfig],
    *,
    seconds: float,
    shape: ModelShape | None,
    device: torch.device,
    dtype: torch.dtype,
    cuda_graphs: bool = False,
) -> dict[str, Budget]:
    """The memory that each would need alone."""
    return {
        name: plan(
            config,
            weights_folder(),
            device=device,
            dtype=dtype,
            seconds=seconds,
            shape=shape,
            prompts=(),
            cuda_graphs=cuda_graphs,
        )
        for name, config in configs.items()
    }


def together(plans: Sequence[Budget]) -> Budget:
    """The memory that all need at the same time: the weights once, and each its own cache, archive and history."""
    own_parts = ("K/V", "archive", "history")
    parts = list(plans[0].parts)
    for other in plans[1:]:
        own = [part for part in other.parts if part.name.startswith(own_parts)]
        parts += [replace(part, name=f"{part.name}, {other.config.memory.strategy}") for part in own]
    return replace(plans[0], parts=tuple(parts))


def load(
    configs: Mapping[str, RunConfig], *, shape: ModelShape | None, device: str, dtype: str, how: Execution
) -> dict[str, Pipeline]:
    """A pipeline for each memory, all over the same weights: read from their files, or random ones of a shape.

    The text encoder, which runs once a video, is left out: prompts are random embeddings.
    """
    set_deterministic(device, fast=how.fast)
    if how.compile:  # each memory has its own context lengths; past the limit torch falls back to eager
        torch._dynamo.config.cache_size_limit = 8 * len(configs)
    retrieving = [config for config in configs.values() if isinstance(config.memory, RetrievalMemory)]
    lead = [*retrieving, *configs.values()][0]  # one that retrieves loads the encoder, which others share
    family = family_of(lead)
    if shape is None:
        loaded = Pipeline.load(lead, device=device, dtype=dtype, how=how)
        text = RandomText(family.text_length, loaded.backbone.transformer.config.text_dim)
        loaded = replace(loaded, text=text)
    else:
        target = find_device(device)
        loaded = random_pipeline(lead, shape, device=target, dtype=find_dtype(dtype, target, family=family), how=how)
    return {name: loaded.with_memory(config) for name, config in configs.items()}


def measure(
    pipelines: Mapping[str, Pipeline],
    *,
    blocks: int,
    warmup: int,
    folder: Path,
    on_block: Callable[[], None] = lambda: None,
    meter: Meter | None = None,
) -> dict[str, Times]:
    """Time ``blocks`` blocks of each memory, streamed and in turns, after ``warmup`` blocks that are not counted.

    The videos go to ``folder``; ``on_block`` is called after each block of each memory. A ``meter`` takes the peak
    memory of each video while it is streamed.
    """
    runs, meter = {}, meter or Meter(pipelines)
    for name, pipeline in pipelines.items():
        _Run(pipeline, blocks=1, warmup=0).stream(folder / f"{name}-first.mp4", 1)
    times: dict[str, Times] = {}
    for name, pipeline in pipelines.items():
        runs[name] = _Run(pipeline, blocks=blocks, warmup=warmup)
        with meter.of(name):
            marks = runs[name].stream(folder / f"{name}.mp4", warmup + blocks, on_block)
        times[name] = Times(first_frames=marks[1] - marks[0], streamed=(marks[-1] - marks[warmup]) / blocks)
    for name, run in runs.items():
        run.write_to(folder / f"{name}-turns.mp4")
    turns = in_turns([run.turn for run in runs.values()], blocks, on_block)
    for run, entry, laps in zip(runs.values(), times.values(), turns, strict=True):
        run.close()
        for part in PARTS:
            entry.parts[part] = [lap[part] for lap in laps]
    return times


def in_turns(
    sides: Sequence[Callable[[], Any]], count: int, on_turn: Callable[[], None] = lambda: None
) -> list[list[Any]]:
    """The results of each side in ``count`` rounds of one turn each; every second round runs in reverse order."""
    results: list[list[Any]] = [[] for _ in sides]
    for turn in range(count):
        order = range(len(sides)) if turn % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            results[side].append(sides[side]())
            on_turn()
    return results


def ratio(times: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Quotients of pairs of times: median, the quarters about it, mean, and the mean's 95 % bootstrap interval."""
    quotients = [one / other for one, other in zip(times, base, strict=True)]
    quarter, median, three_quarters = np.quantile(quotients, (0.25, 0.5, 0.75))
    mean, low, high = interval(quotients)
    numbers = {"median": median, "quarter": quarter, "three_quarters": three_quarters, "mean": mean}
    return {name: float(value) for name, value in (numbers | {"low": low, "high": high}).items()}


def summary(config: RunConfig, times: Mapping[str, Times]) -> dict[str, Any]:
    """Rates, shares and ratios of all memories; the first is the baseline."""
    latent, temporal_ratio = config.backbone.frames_per_block, config.latent_space.temporal_ratio
    memories, ratios = {}, {}
    base = next(iter(times.values()))

    def rates(seconds: float) -> dict[str, float]:
        return {"latent_fps": latent / seconds, "pixel_fps": temporal_ratio * latent / seconds}

    for name, entry in times.items():
        memories[name] = {
            "generation": {
                **rates(statistics.fmean(entry.generating)),
                "block_seconds": statistics.median(entry.generating),
            },
            "end_to_end": rates(entry.streamed) | {"block_seconds": entry.streamed},
            "decode_seconds": statistics.median(entry.parts["decode"]),
            "first_frames_seconds": entry.first_frames,
            "shares": entry.shares,
        }
        if entry is not base:
            ratios[name] = {
                "generation": ratio(entry.generating, base.generating),
                "with_decoding": ratio(entry.whole, base.whole),
            }
    return {"baseline": next(iter(times)), "memories": memories, "ratios": ratios}


class Meter:
    """Peak memory on a GPU: of all videos together, and of each as if it were alone with the weights that it needs.

    A video that is measured after others is counted without what those still hold. On a CPU, where only the peak of
    the whole process is known, that of each video is not.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self.device = next(iter(pipelines.values())).backbone.device
        self.peaks: dict[str, int | None] = dict.fromkeys(pipelines)
        self._highest = 0
        encoders = {id(pipeline.encode_key): pipeline.encode_key for pipeline in pipelines.values()}
        self._unused = {  # encoders that only other memories need
            name: sum(_bytes(encoder) for encoder in encoders.values() if encoder is not pipeline.encode_key)
            for name, pipeline in pipelines.items()
        }
        self._weights = self._allocated()

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Take the peak of a memory's video, which is made in this context."""
        if self.device.type != "cuda":
            yield
            return
        others = self._allocated() - self._weights + self._unused[name]
        self._highest = self.together or 0
        torch.cuda.reset_peak_memory_stats(self.device)
        yield
        self.peaks[name] = torch.cuda.max_memory_allocated(self.device) - others

    @property
    def together(self) -> int | None:
        """The peak of everything so far."""
        peak = peak_memory(self.device)
        return peak if peak is None or self.device.type != "cuda" else max(peak, self._highest)

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else 0


def _bytes(encoder: Any) -> int:
    """Bytes of what frames are compared by; none for average pooling."""
    parameters = encoder.parameters() if isinstance(encoder, torch.nn.Module) else ()
    return sum(each.numel() * each.element_size() for each in parameters)


class _Clock:
    """Wall time; if ``exact``, it first waits for the work queued on a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.exact = False

    def __call__(self) -> float:
        if self.exact and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class _Marking(VideoWriter):
    """Notes when each block's frames were handed to ffmpeg."""

    def __init__(self, path: Path, *, fps: int, upscale: int, crf: int) -> None:
        super().__init__(path, fps=fps, upscale=upscale, crf=crf)
        self.marks: list[float] = []

    def write(self, frames: Tensor) -> None:
        super().write(frames)
        self.marks.append(time.perf_counter())


class _Run:
    """One memory's video: first streamed, then continued in turns."""

    def __init__(self, pipeline: Pipeline, *, blocks: int, warmup: int) -> None:
        self.pipeline = pipeline
        self.clock = _Clock(pipeline.backbone.device)
        seconds = seconds_of(pipeline.config, blocks=blocks, warmup=warmup)
        self.session = pipeline.start("a random embedding", seconds=seconds, clock=self.clock)
        self.decoder = pipeline.decoder.stream()

    def stream(self, path: Path, count: int, on_block: Callable[[], None] = lambda: None) -> list[float]:
        """Write ``count`` blocks as a run does; returns when it started, and when each block reached the file."""
        writer = self._writer(path)
        started = time.perf_counter()
        with VideoSink(self.decoder, writer) as sink:
            for block in islice(self.session, count):
                sink.put(block.latents)
                on_block()
        return [started, *writer.marks]

    def write_to(self, path: Path) -> None:
        """Set the file that ``turn`` writes."""
        self.writer = self._writer(path)
        self.clock.exact = True

    def turn(self) -> dict[str, float]:
        """Compute, decode and write the next block; seconds of each part."""
        block = next(self.session)
        started = self.clock()
        frames = self.decoder.decode(block.latents)[0]
        decoded = self.clock()
        self.writer.write(frames)
        times = {part: sum(block.seconds[lap] for lap in laps) for part, laps in GENERATING.items()}
        return times | {"decode": decoded - started, "write": self.clock() - decoded}

    def close(self) -> None:
        """Finish the file, and free what the video held."""
        self.writer.close()
        self.session.close()

    def _writer(self, path: Path) -> _Marking:
        config = self.pipeline.config
        return _Marking(path, fps=config.backbone.fps, upscale=config.video.upscale, crf=config.video.crf)
