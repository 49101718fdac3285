"""A GPU that is not there: tensors on it have shapes and no contents, and all that is asked of it is counted.

Inside ``FakeGPU()`` the code under test runs unchanged on `cuda` tensors, on a machine without a GPU and with a torch
without CUDA. Tensors on the CPU stay real. What the host copies, where it waits, which stream waits for which event,
how many kernels are launched and how much memory is held, by owner, is recorded. Accesses of two streams to one tensor,
or to one range of host memory, that no event orders are reported as races, as are tensors that are freed while another
stream uses them.

Simplifications: kernels take no time; what one thread of the host has waited for, all threads know.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
DEVICE = torch.device("cuda:0")
NAMED = 1_000_000  # bytes; smaller tensors are not listed by owner


READ = 4096  # elements; what the host copies of a larger tensor is zeros


@dataclass(frozen=True)
class Copy:
    """One copy between host and device."""

    to: str  # "device" or "host"
    bytes: int
    waits: bool  # the host waits for it: it is blocking, or its host memory is not page-locked
    site: str
    stream: str
    thread: str


@dataclass(frozen=True)
class Wait:
    """A stream that waits for what another one had been given when an event was recorded."""

    stream: str
    on: str  # name of the stream of the event
    site: str  # where the wait was asked for
    recorded: str  # where the event was recorded


@dataclass
class Storage:
    """What is known of a tensor's memory."""

    bytes: int
    owner: str
    stream: FakeStream  # that it was allocated on
    uses: dict[tuple[int, int, bool, FakeStream], int] = field(default_factory=dict)  # (first byte, end, write, stream)
    recorded: set[FakeStream] = field(default_factory=set)  # by `record_stream`


class FakeEvent:
    """As ``torch.cuda.Event``."""

    def __init__(self, **_: Any) -> None:
        self.clock: dict[FakeStream, int] = {}
        self.stream: FakeStream | None = None
        self.site = "?"

    def record(self, stream: FakeStream | None = None) -> None:
        self.stream = stream or _gpu().current
        self.clock, self.site = dict(self.stream.clock), site()

    def wait(self, stream: FakeStream | None = None) -> None:
        (stream or _gpu().current).wait_event(self)

    def query(self) -> bool:
        return all(_gpu().known.get(stream, 0) >= tick for stream, tick in self.clock.items())

    def synchronize(self) -> None:
        if not self.query():
            _gpu().synchronised(self.clock)

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1.0  # milliseconds, whatever ran


class FakeStream:
    """As ``torch.cuda.Stream``; its clock counts, of each stream, the operations that come before its next one."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.device = DEVICE
        self.clock: dict[FakeStream, int] = {}
        self.name = _gpu().name_for(site(), self) if _ACTIVE else "main"

    def wait_event(self, event: FakeEvent) -> None:
        assert event.stream is not None
        _gpu().waits.append(Wait(self.name, event.stream.name, site(), event.site))
        self._join(event.clock)

    def wait_stream(self, other: FakeStream) -> None:
        _gpu().waits.append(Wait(self.name, other.name, site(), site()))
        self._join(other.clock)

    def record_event(self, event: FakeEvent | None = None) -> FakeEvent:
        event = event or FakeEvent()
        event.record(self)
        return event

    def synchronize(self) -> None:
        _gpu().synchronised(self.clock)

    def query(self) -> bool:
        return all(_gpu().known.get(stream, 0) >= tick for stream, tick in self.clock.items())

    def tick(self) -> int:
        """One more operation."""
        self._join(_gpu().known)  # the host launches it after what it has waited for
        self.clock[self] = self.clock.get(self, 0) + 1
        return self.clock[self]

    def _join(self, clock: dict[FakeStream, int]) -> None:
        for stream, tick in clock.items():
            self.clock[stream] = max(self.clock.get(stream, 0), tick)


class Runtime:
    """Page-locking, as ``torch.cuda.cudart()``; ``limit`` is how many bytes can be locked."""

    def __init__(self) -> None:
        self.limit: float = float("inf")
        self.ranges: dict[int, int] = {}  # address to size
        self.calls: list[tuple[int, str]] = []  # bytes, and the thread that asked

    def cudaHostRegister(self, address: int, size: int, _: int) -> int:  # noqa: N802 - CUDA's own name
        self.calls.append((size, threading.current_thread().name))
        if sum(self.ranges.values()) + size > self.limit:
            return 2
        self.ranges[address] = size
        return 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802
        del self.ranges[address]
        return 0


_ACTIVE: list[FakeGPU] = []


def _gpu() -> FakeGPU:
    return _ACTIVE[-1]


def site() -> str:
    """The innermost line of llrag's own that led here, but for helpers that only pass tensors on."""
    frame, other = sys._getframe(1), None
    while frame is not None:
        name = frame.f_code.co_filename
        if "llrag_cli/" in name and not name.endswith("files/transfer.py"):
            return f"{name.split('llrag_cli/')[-1].removesuffix('.py')}:{frame.f_code.co_name}"
        if other is None and "diffusers/models" in name:
            other = f"{name.split('models/')[-1]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return other or "?"


class _Mode(FakeTensorMode):
    """Fake tensors that several threads may use: whether one is inside a kernel is of no concern to the others."""

    _inside = threading.local()

    @property
    def in_kernel_invocation(self) -> bool:  # type: ignore[override]
        return getattr(self._inside, "kernel", False)

    @in_kernel_invocation.setter
    def in_kernel_invocation(self, inside: bool) -> None:
        self._inside.kernel = inside


class FakeGPU:
    """A context in which `cuda` is a counting device without contents.

    What the host reads from it is what ``read`` returns for a tensor, as nested lists; by default zeros, or True.
    """

    def __init__(self, read: Callable[[Tensor], Any] | None = None, *, memory: int = 80 * 10**9) -> None:
        self.read = read or (lambda tensor: torch.full(tensor.shape, int(tensor.dtype == torch.bool)).tolist())
        self.memory = memory
        self.capability = (9, 0)
        self.mode = _Mode(allow_non_fake_inputs=True)
        self.lock = threading.RLock()
        self.runtime = Runtime()
        self.thread = threading.current_thread().name
        self.known: dict[FakeStream, int] = {}  # what the host has waited for
        self.reset()
        self.live = self.peak = 0
        self.owners: Counter[str] = Counter()
        self.peak_owners: dict[str, int] = {}
        self.races: list[str] = []
        self._storages: dict[int, Storage] = {}
        self._in_use: list[tuple[int, str, dict[FakeStream, int]]] = []  # freed, but another stream uses it still
        self._pinned: set[int] = set()  # storages of page-locked tensors on the host
        self._host: list[tuple[int, int, str, FakeStream, int]] = []  # copies: first byte, end, "read"/"write", ...
        self._names: Counter[str] = Counter()
        self._local = threading.local()
        self._stack = contextlib.ExitStack()
        self.main = FakeStream()

    def reset(self) -> None:
        """Begin to count anew, as at the start of a block; memory and streams stay as they are."""
        self.copies: list[Copy] = []
        self.syncs: list[tuple[str, str]] = []  # site and thread
        self.waits: list[Wait] = []
        self.kernels: Counter[str] = Counter()  # by site
        self.traffic: Counter[str] = Counter()  # bytes that kernels read and write, by site
        self.flops: Counter[str] = Counter()

    def forget_peak(self) -> None:
        """Begin to measure the peak of memory anew."""
        self.peak, self.peak_owners = self.live, {name: held for name, held in self.owners.items() if held}

    # -- what is read off it

    @property
    def small_copies(self) -> Counter[str]:
        """Copies to the device besides pages of the archive, of all threads, by site."""
        return Counter(
            copy.site for copy in self.copies if copy.to == "device" and not copy.site.startswith("cache/pages:")
        )

    @property
    def host_waits(self) -> Counter[str]:
        """Where the thread that entered the context waited for the device: synchronisations, and copies that block."""
        waits = [*self.syncs, *((copy.site, copy.thread) for copy in self.copies if copy.waits)]
        return Counter(where for where, thread in waits if thread == self.thread)

    def moved(self, to: str) -> int:
        """Bytes copied in a direction."""
        return sum(copy.bytes for copy in self.copies if copy.to == to)

    # -- the context

    def __enter__(self) -> FakeGPU:
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        _ACTIVE.append(self)
        self._stack.callback(_ACTIVE.pop)
        properties = {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "get_device_name": lambda device=None: "Fake GPU",
            "get_device_capability": lambda device=None: self.capability,
            "Stream": FakeStream,
            "Event": FakeEvent,
            "current_stream": lambda device=None: self.current,
            "stream": self._on_stream,
            "device": lambda device: contextlib.nullcontext(),
            "synchronize": lambda device=None: self.synchronised(self._everything()),
            "cudart": lambda: self.runtime,
            "mem_get_info": lambda device=None: (self.memory - self.live, self.memory),
            "memory_reserved": lambda device=None: self.live,
            "memory_allocated": lambda device=None: self.live,
            "max_memory_allocated": lambda device=None: self.peak,
        }
        for name, value in properties.items():
            patch.setattr(torch.cuda, name, value)
        run = threading.Thread.run

        def with_modes(thread: threading.Thread) -> None:
            with self._modes():
                run(thread)

        patch.setattr(fake_tensor, "init_gpu_context", lambda device: None)  # asks the driver, in builds for GPUs
        patch.setattr(threading.Thread, "run", with_modes)
        patch.setattr(torch.nn.Module, "_apply", _apply)
        patch.setattr(FakeTensor, "tolist", lambda tensor: self._listed(tensor), raising=False)
        patch.setattr(FakeTensor, "record_stream", lambda tensor, stream: self._recorded(tensor, stream), raising=False)
        self._stack.enter_context(self._modes())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def _modes(self) -> Iterator[None]:
        with _Functions(self), _Operations(self):
            yield

    # -- streams

    @property
    def current(self) -> FakeStream:
        return getattr(self._local, "stream", None) or self.main

    @contextlib.contextmanager
    def _on_stream(self, stream: FakeStream | None) -> Iterator[None]:
        before = self.current
        self._local.stream = stream or before
        try:
            yield
        finally:
            self._local.stream = before

    def name_for(self, where: str, stream: FakeStream) -> str:
        """A stream is called by the place that made it."""
        self._names[where] += 1
        return f"{where}#{self._names[where]}"

    def synchronised(self, clock: dict[FakeStream, int], *, count: bool = True) -> None:
        """The host has waited for a point in time."""
        with self.lock:
            if count:
                self.syncs.append((site(), threading.current_thread().name))
            for stream, tick in clock.items():
                self.known[stream] = max(self.known.get(stream, 0), tick)
            self._collect()

    def _everything(self) -> dict[FakeStream, int]:
        streams = {stream for storage in self._storages.values() for *_, stream in storage.uses}
        return {stream: stream.clock.get(stream, 0) for stream in streams}

    # -- memory

    def _allocated(self, tensor: Tensor) -> Storage:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            size = storage.nbytes()
            owner = site() if size >= NAMED else "small tensors"
            self._storages[key] = Storage(size, owner, self.current)
            self._count(size, owner)
            weakref.finalize(storage, self._freed, key)
        return self._storages[key]

    def _count(self, size: int, owner: str) -> None:
        self._collect()
        self.live += size
        self.owners[owner] += size
        if self.live > self.peak:
            self.peak, self.peak_owners = self.live, {name: held for name, held in self.owners.items() if held}

    def _listed(self, tensor: Tensor) -> Any:
        with self.lock:
            self.synchronised(self.current.clock)
            return self.read(tensor)

    def _recorded(self, tensor: Tensor, stream: FakeStream) -> None:
        with self.lock:
            self._allocated(tensor).recorded.add(stream)

    def _freed(self, key: int) -> None:
        with self.lock:
            storage = self._storages.pop(key)
            uses: dict[FakeStream, int] = {}
            for (_, _, _, stream), tick in storage.uses.items():
                uses[stream] = max(uses.get(stream, 0), tick)
            pending = {
                stream: tick
                for stream, tick in uses.items()
                if stream is not storage.stream
                and max(storage.stream.clock.get(stream, 0), self.known.get(stream, 0)) < tick
            }
            for stream in set(pending) - storage.recorded:
                self.races.append(f"memory of {storage.owner} is freed while {stream.name} uses it")
            if pending:
                self._in_use.append((storage.bytes, storage.owner, pending))
            else:
                self.live -= storage.bytes
                self.owners[storage.owner] -= storage.bytes

    def _collect(self) -> None:
        """Count memory as free that a stream used when it was freed, once anyone has waited for that stream."""
        waiting = []
        for size, owner, pending in self._in_use:
            if all(max(self.main.clock.get(s, 0), self.known.get(s, 0)) >= tick for s, tick in pending.items()):
                self.live -= size
                self.owners[owner] -= size
            else:
                waiting.append((size, owner, pending))
        self._in_use = waiting

    # -- accesses

    def _accessed(self, tensor: Tensor, *, write: bool) -> None:
        if not _is_fake(tensor):
            return
        storage, stream = self._allocated(tensor), self.current
        item = tensor.element_size()
        first = tensor.storage_offset() * item
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        end = first + (reach + 1) * item if tensor.numel() else first
        for (begin, stop, wrote, other), tick in storage.uses.items():
            overlaps = first < stop and begin < end
            if other is not stream and (write or wrote) and overlaps and stream.clock.get(other, 0) < tick:
                kind = "writes" if write else "reads"
                self.races.append(f"{stream.name} {kind} memory of {storage.owner} in {site()}, {other.name} used it")
        storage.uses[first, end, write, stream] = stream.clock.get(stream, 0)

    def _host_accessed(self, tensor: Tensor, *, write: bool) -> None:
        """An asynchronous copy from or to page-locked memory."""
        first = tensor.data_ptr()
        end, stream = first + tensor.numel() * tensor.element_size(), self.current
        kept = []
        for entry in self._host:
            begin, stop, kind, other, tick = entry
            if self.known.get(other, 0) >= tick:
                continue  # over, as the host knows
            overlaps = first < stop and begin < end
            if overlaps and (write or kind == "write") and stream.clock.get(other, 0) < tick:
                self.races.append(f"{stream.name} copies host memory in {site()} that {other.name} has not finished")
            kept.append(entry)
        self._host = [*kept, (first, end, "write" if write else "read", stream, stream.clock.get(stream, 0))]

    # -- operations

    def is_pinned(self, tensor: Tensor) -> bool:
        """Whether memory of the host is page-locked."""
        first = tensor.data_ptr()
        end = first + tensor.numel() * tensor.element_size()
        if tensor.untyped_storage()._cdata in self._pinned:
            return True
        position = first
        for address, size in sorted(self.runtime.ranges.items()):
            if address <= position < address + size:
                position = address + size
        return position >= end

    def pin(self, tensor: Tensor) -> Tensor:
        """Mark a tensor of the host as page-locked."""
        key = tensor.untyped_storage()._cdata
        self._pinned.add(key)
        weakref.finalize(tensor.untyped_storage(), self._pinned.discard, key)
        return tensor

    def copied(self, host: Tensor, device: Tensor, *, to: str, non_blocking: bool) -> None:
        """Count a copy."""
        stream = self.current
        stream.tick()
        waits = not (non_blocking and self.is_pinned(host))
        size = host.numel() * host.element_size()
        self.copies.append(Copy(to, size, waits, site(), stream.name, threading.current_thread().name))
        self._accessed(device, write=to == "device")
        if waits:
            self.synchronised(stream.clock, count=False)
        else:
            self._host_accessed(host, write=to == "host")

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One operation of torch."""
        device = kwargs.get("device") if kwargs else None
        to_device = device is not None and torch.device(device).type == "cuda"
        fakes = [each for each in _flat(args, kwargs) if isinstance(each, FakeTensor)]
        if not fakes and not to_device:
            return func(*args, **kwargs)
        with self.lock:
            return self._run(func, args, kwargs, fakes, to_device=to_device)

    def _run(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], fakes: list[Any], *, to_device: bool
    ) -> Any:
        if to_device:
            kwargs = {**kwargs, "device": DEVICE}
        if kwargs.get("pin_memory"):
            raise AssertionError("a tensor on a GPU is not page-locked")
        if func is aten._local_scalar_dense.default:
            self.synchronised(self.current.clock)
            value = self.read(args[0])
            while isinstance(value, list):
                value = value[0]
            return value
        if func is aten._to_copy.default and "device" in kwargs:
            source, target = args[0], torch.device(kwargs["device"])
            dtype, non_blocking = kwargs.get("dtype") or source.dtype, kwargs.get("non_blocking", False)
            if target.type == "cpu":
                landed = torch.zeros(source.shape, dtype=source.dtype)
                if source.numel() < READ:
                    landed.copy_(torch.tensor(self.read(source)))
                if non_blocking:
                    self.pin(landed)  # as torch does
                self.copied(landed, source, to="host", non_blocking=non_blocking)
                return landed.to(dtype)
            if not _is_fake(source):
                with self.mode:
                    arrived = torch.empty(source.shape, dtype=dtype, device=DEVICE)
                self.copied(source, arrived, to="device", non_blocking=non_blocking)
                return arrived
        if func is aten.copy_.default:
            target, source = args[:2]
            non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
            if not _is_fake(source) and source.ndim:
                self.copied(source, target, to="device", non_blocking=non_blocking)
                return target
            if not _is_fake(target):
                self.copied(target, source, to="host", non_blocking=non_blocking)
                return target
        if func in (aten.index.Tensor, aten.index_put_.default):  # torch copies indices that are on the host
            indices = [None if each is None else self._on_device(each) for each in args[1]]
            args = (args[0], indices, *args[2:])
        strangers = (each for each in _flat(args, kwargs) if isinstance(each, Tensor) and not _is_fake(each))
        if fakes and any(each.ndim for each in strangers):
            raise AssertionError(f"{func} mixes tensors of host and device in {site()}")
        last = _channels_last(*args[:2]) if func is aten.convolution.default else None
        if last is not None and not args[0].is_contiguous(memory_format=last):  # it is copied, as for cuDNN
            args = (self._run(aten.clone.default, args[:1], {"memory_format": last}, fakes, to_device=False), *args[1:])
        returns, arguments = func._schema.returns, func._schema.arguments
        if func in _RANDOM:
            result = args[0]
        elif fakes and func is aten.convolution.default:
            result = self._convolved(func, args, kwargs)
        elif fakes:
            result = func(*args, **kwargs)
        else:
            with self.mode:
                result = func(*args, **kwargs)
        if last is not None:
            with self.mode:
                result = torch.empty_like(result, memory_format=last)
        views = any(each.alias_info is not None and not each.alias_info.is_write for each in returns)
        if views or func in _FREE or func.namespace == "prim":
            for each in result if isinstance(result, (list, tuple)) else (result,):
                if _is_fake(each):
                    self._allocated(each)
            return result
        self.current.tick()
        self._launched(func, args, kwargs, result)
        if func._overloadpacket in flop_registry:
            self.flops[func._overloadpacket.__name__] += flop_registry[func._overloadpacket](
                *args, **kwargs, out_val=result
            )
        for argument, value in zip(arguments, args, strict=False):
            for each in value if isinstance(value, (list, tuple)) else (value,):
                if isinstance(each, FakeTensor):
                    alias = argument.alias_info
                    self._accessed(each, write=alias is not None and alias.is_write)
        for each in result if isinstance(result, (list, tuple)) else (result,):
            if isinstance(each, FakeTensor):
                self._accessed(each, write=True)
        return result

    def _launched(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Count a kernel, and what it reads and writes."""
        where = site()
        self.kernels[where] += 1
        read = _flat(args[1:] if func is aten.copy_.default else args, kwargs)
        written = result if isinstance(result, (list, tuple)) else (result,)
        self.traffic[where] += sum(
            each.numel() * each.element_size() for each in (*read, *written) if isinstance(each, FakeTensor)
        )

    def _convolved(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """An empty result of a convolution, for which torch would ask cuDNN in builds for GPUs."""
        with no_dispatch():
            shapes = [
                torch.empty_strided(each.shape, each.stride(), dtype=each.dtype, device="meta")
                if isinstance(each, Tensor)
                else each
                for each in args
            ]
            made = func(*shapes, **kwargs)
        with self.mode:
            return torch.empty_strided(made.shape, made.stride(), dtype=made.dtype, device=DEVICE)

    def _on_device(self, index: Tensor) -> Tensor:
        return (
            index
            if _is_fake(index)
            else self._run(aten._to_copy.default, (index,), {"device": DEVICE}, [], to_device=True)
        )


_FREE = {aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default}
_RANDOM = {aten.uniform_.default, aten.normal_.default}
_FREE |= {
    aten.new_empty_strided.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
    aten.set_.source_Storage,
}


def _apply(module: Any, function: Callable[[Tensor], Tensor], *_: bool, **__: bool) -> Any:
    """As ``Module._apply``, which would exchange the contents of two tensors."""
    for child in module.children():
        child._apply(function)
    for name, parameter in module._parameters.items():
        if parameter is not None and (moved := function(parameter.data)) is not parameter.data:
            module._parameters[name] = torch.nn.Parameter(moved, requires_grad=parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


def _flat(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """Arguments, and what lists among them hold; operators of torch nest no deeper."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def _channels_last(*tensors: Tensor) -> torch.memory_format | None:
    """The layout that a convolution computes in if its input or its weight has channels last."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensors[0].ndim)
    if last is None or not any(each.is_contiguous(memory_format=last) and not each.is_contiguous() for each in tensors):
        return None
    return last


def _is_fake(value: Any) -> bool:
    return isinstance(value, FakeTensor)


class _Operations(TorchDispatchMode):
    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.gpu.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Functions that would ask a real device before anything is dispatched, and attention, which is one kernel."""

    def __init__(self, gpu: FakeGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(self.gpu, *args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)


def _get(gpu: FakeGPU, tensor: Any, key: Any) -> Any:
    if not _is_fake(tensor):
        return NotImplemented
    key = key if isinstance(key, tuple) else (key,)
    if any(part is Ellipsis for part in key):
        at = next(number for number, part in enumerate(key) if part is Ellipsis)
        named = sum(part is not None and part is not Ellipsis for part in key)
        key = (*key[:at], *(slice(None),) * (tensor.ndim - named), *key[at + 1 :])
    dim, indexed = 0, []
    for part in key:
        if part is None:
            tensor = tensor.unsqueeze(dim)
            dim += 1
        elif isinstance(part, slice):
            if part != slice(None):
                tensor = aten.slice.Tensor(tensor, dim, part.start, part.stop, part.step or 1)
            dim += 1
        elif isinstance(part, Tensor):
            indexed.append((dim, part))
            dim += 1
        else:
            tensor = aten.select.int(tensor, dim, part)
    if indexed:
        indices: list[Tensor | None] = [None] * (indexed[-1][0] + 1)
        for at, index in indexed:
            indices[at] = index
        tensor = aten.index.Tensor(tensor, indices)
    return tensor


def _set(gpu: FakeGPU, tensor: Any, key: Any, value: Any) -> Any:
    if not _is_fake(tensor):
        return NotImplemented
    target = _get(gpu, tensor, key)
    if isinstance(value, Tensor):
        aten.copy_.default(target, value)
    else:
        aten.fill_.Scalar(target, value)
    return None


def _contiguous(gpu: FakeGPU, tensor: Any, *, memory_format: Any = torch.contiguous_format) -> Any:
    if not _is_fake(tensor):
        return NotImplemented
    ready = tensor.is_contiguous(memory_format=memory_format)
    return tensor if ready else aten.clone.default(tensor, memory_format=memory_format)


def _copy(gpu: FakeGPU, tensor: Any, source: Any, *non_blocking: Any, **named: Any) -> Any:
    if not _is_fake(tensor) and not _is_fake(source):
        return NotImplemented
    return aten.copy_.default(tensor, source, *non_blocking, **named)


def _to(gpu: FakeGPU, tensor: Any, *args: Any, copy: bool = False, **kwargs: Any) -> Any:
    if args and isinstance(args[0], Tensor):
        return _to(gpu, tensor, args[0].device, args[0].dtype, *args[1:], copy=copy, **kwargs)
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    if not _is_fake(tensor) and (device is None or device.type != "cuda"):
        return NotImplemented
    settings: dict[str, Any] = {"non_blocking": non_blocking, "memory_format": memory_format}
    if dtype is not None and dtype != tensor.dtype:
        settings["dtype"] = dtype
    if device is not None and device.type != tensor.device.type:
        settings["device"] = device
    if not copy and len(settings) == 2 and memory_format in (None, torch.preserve_format):
        return tensor
    return aten._to_copy.default(tensor, **settings)


def _attention(
    gpu: FakeGPU, query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, *_: Any, **__: Any
) -> Any:
    if not _is_fake(query):
        return NotImplemented
    assert query.dtype == key.dtype == value.dtype and key.device == value.device == query.device
    batch, heads, tokens, dim = query.shape
    with gpu.lock:
        gpu.current.tick()
        gpu.flops["attention"] += 4 * batch * heads * tokens * key.shape[2] * dim
        for part in (query, key, value):
            gpu._accessed(part, write=False)
        output = torch.empty_like(query)
        gpu._accessed(output, write=True)
        gpu._launched(None, (query, key, value), {}, output)
    return output


def _tensor(gpu: FakeGPU, data: Any, *, device: Any = None, **settings: Any) -> Any:
    if device is None or torch.device(device).type != "cuda":
        return NotImplemented
    return _to(gpu, torch.tensor(data, **settings), device)


def _new_tensor(gpu: FakeGPU, tensor: Any, data: Any, **settings: Any) -> Any:
    if not _is_fake(tensor):
        return NotImplemented
    return _to(gpu, torch.tensor(data, dtype=tensor.dtype, **settings), DEVICE)


def _empty(gpu: FakeGPU, *size: Any, pin_memory: bool = False, **settings: Any) -> Any:
    return gpu.pin(torch.empty(*size, **settings)) if pin_memory else NotImplemented


def _pin_memory(gpu: FakeGPU, tensor: Tensor) -> Any:
    return tensor if gpu.is_pinned(tensor) else gpu.pin(tensor.clone())


_HANDLERS: dict[Any, Callable[..., Any]] = {
    Tensor.__getitem__: _get,
    Tensor.__setitem__: _set,
    Tensor.contiguous: _contiguous,
    Tensor.copy_: _copy,
    Tensor.to: _to,
    Tensor.cpu: lambda gpu, tensor: _to(gpu, tensor, "cpu"),
    Tensor.new_tensor: _new_tensor,
    Tensor.pin_memory: _pin_memory,
    Tensor.is_pinned: lambda gpu, tensor: gpu.is_pinned(tensor),
    torch.tensor: _tensor,
    torch.empty: _empty,
    torch.nn.functional.scaled_dot_product_attention: _attention,
}
