"""Memory and disk space that are free."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from llrag_cli.errors import LlragError

if TYPE_CHECKING:
    import torch

_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "status_alloc_failed")


def free_memory(device: torch.device | None) -> int | None:
    """Bytes free on a device, on the host for None or a CPU; None where the system does not report it.

    What torch keeps of a GPU for later is free. A limit of the control group, as of a container, bounds the host.
    """
    if device is not None and device.type == "cuda":
        import torch

        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    bounds = [bound for bound in (_available(), _group_room()) if bound is not None]
    return min(bounds, default=None)


def _available() -> int | None:
    """Memory that the system can give."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None


def _group_room(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """What the control groups of this process may still take, the tightest of them; None where none is limited.

    File contents that the system would drop for others' sake do not count as taken. Groups are of version 2, or 1.
    """
    try:
        lines = [line.split(":", 2) for line in membership.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    rooms = []
    for _, controllers, name in (line for line in lines if len(line) == 3):
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        group = base / name.strip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(base))):
            most, taken = _number(folder / limit), _number(folder / used)
            if most is not None and taken is not None and most < 2**60:  # version 1 writes a huge number for none
                rooms.append(max(0, most - taken + _dropped(folder / "memory.stat")))
    return min(rooms, default=None)


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):  # `max`
        return None


def _dropped(file: Path) -> int:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    except OSError:
        return 0


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the host."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if isinstance(error, RuntimeError) and type(error).__name__ == "OutOfMemoryError":  # that of torch
        return True
    text = str(error).lower()
    return not isinstance(error, LlragError) and any(phrase in text for phrase in _NO_MEMORY)


def free_disk(folder: Path) -> int | None:
    """Bytes free on the disk of a folder, which need not exist yet; None where the system does not report it."""
    folder = folder.absolute()
    try:
        return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    except OSError:
        return None
