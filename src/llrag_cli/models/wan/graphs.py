"""CUDA graphs of denoising passes: recorded once, then started by the host as one piece of work.

A pass over a frame-wise block may be shorter on a GPU than the Python that queues its kernels; a graph takes that time
away. What is recorded is the whole pass of one video: the same kernels, on the same memory, in the same order. So
everything that a pass reads must stay where it is: weights and the prompt's keys and values do, the context is gathered
into buffers that are allocated once, and latents, timestep and rotary table are copied to where the recording reads
them. Where any of this differs, another recording is needed, or the pass is computed as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llrag_cli.errors import LlragError

MOST = 4  # recordings under one prompt
REMEMBERED = 32  # kinds of passes that have been seen, of which some may come again

Work = Callable[[Tensor, Tensor, Tensor], Tensor]  # flow [B, T, C, H, W] of latents, timestep and rotary table


class Recording(Protocol):
    """A recorded pass; ``replay`` computes ``output`` anew from what its inputs hold then."""

    @property
    def output(self) -> Tensor: ...
    def replay(self) -> object: ...


class Recorder(Protocol):
    """Records what a function computes, without computing it; the function has run before."""

    def record(self, work: Callable[[], Tensor]) -> Recording: ...


@dataclass(frozen=True)
class RecordedGraph:
    """A CUDA graph."""

    graph: Any
    output: Tensor

    def replay(self) -> None:
        """Compute the output anew, on the current stream."""
        self.graph.replay()


class CUDAGraphs:
    """Records CUDA graphs, which share their memory: only one of them is replayed at a time.

    Other threads, which decode and archive, may use the GPU while a graph is recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, work: Callable[[], Tensor]) -> Recording:
        """As ``Recorder.record``. Raises ``LlragError`` for work that cannot be recorded."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            try:
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    output = work()
            except RuntimeError as error:
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise LlragError(
                    f"a pass cannot be recorded as a CUDA graph: {reason}",
                    hint="generate without CUDA graphs, or with another attention backend",
                ) from error
        return RecordedGraph(graph, output)


@dataclass(frozen=True)
class _Entry:
    """A recording, and the tensors that it reads its inputs from."""

    inputs: tuple[Tensor, ...]
    recording: Recording


class PassGraphs:
    """The recordings of one video.

    A pass is recorded if one of its kind, with inputs of these shapes and a context in the same places, was computed in
    an earlier block: while the window fills, every block is of another kind, and is computed as it is.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._entries: dict[Hashable, _Entry] = {}
        self._seen: OrderedDict[Hashable, int] = OrderedDict()  # the context under which each kind came first
        self._context = 0
        self.recorded = 0  # so far
        self.replayed = 0  # passes that were not computed by Python

    def begin_context(self) -> None:
        """Passes from now on attend to something else, which may be in the same places."""
        self._context += 1

    def clear(self) -> None:
        """Drop all recordings: what they read is about to be freed."""
        self._entries.clear()
        self._seen.clear()

    @torch.no_grad()
    def compute(self, kind: Hashable, work: Work, *inputs: Tensor) -> Tensor:
        """The output of ``work(*inputs)``, whose ``kind`` says where everything else lies that it reads."""
        kind = (kind, tuple((each.shape, each.dtype) for each in inputs))
        entry = self._entries.get(kind)
        if entry is None:
            first = self._seen.setdefault(kind, self._context)
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
            if first == self._context or len(self._entries) >= MOST:
                return work(*inputs)
            entry = self._entries[kind] = self._record(work, inputs)
        for kept, given in zip(entry.inputs, inputs, strict=True):
            kept.copy_(given)
        entry.recording.replay()
        self.replayed += 1
        return entry.recording.output.clone()  # the next replay overwrites it

    def _record(self, work: Work, inputs: tuple[Tensor, ...]) -> _Entry:
        kept = tuple(each.clone(memory_format=torch.contiguous_format) for each in inputs)
        self.recorded += 1
        return _Entry(kept, self._recorder.record(lambda: work(*kept)))
