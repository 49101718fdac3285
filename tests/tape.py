"""A stand-in for CUDA graphs on a CPU: the operators of a function are recorded, and replayed on the same memory.

As in a CUDA graph, a replay runs no Python of the function, knows no tensor that the function made before, reads its
inputs where they were and writes every result where it was. Recording computes nothing that counts: afterwards all
results are NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def tensors_in(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Tape(TorchDispatchMode):
    """The operators of a function, with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, list[Tensor], list[bool]]] = []
        self.output = torch.empty(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "the host waits for a value"
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = {storage_of(each) for each in tensors_in((args, kwargs))}
        made = tensors_in(result)
        self.steps.append((func, args, kwargs, made, [storage_of(each) not in given for each in made]))
        return result

    def spoil(self) -> None:
        """Forget the results of the recording."""
        for *_, made, are_new in self.steps:
            for tensor, is_new in zip(made, are_new, strict=True):
                if is_new:
                    tensor.fill_(float("nan") if tensor.is_floating_point() else 0)

    def replay(self) -> None:
        """Run the operators again."""
        for func, args, kwargs, made, are_new in self.steps:
            again = tensors_in(func(*args, **kwargs))
            for tensor, new, is_new in zip(made, again, are_new, strict=True):
                if is_new:
                    tensor.copy_(new)


class TapeRecorder:
    """Takes the place of ``CUDAGraphs``."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def record(self, work: Callable[[], Tensor]) -> Tape:
        tape = Tape()
        with tape:
            tape.output = work()
        tape.spoil()
        self.tapes.append(tape)
        return tape
