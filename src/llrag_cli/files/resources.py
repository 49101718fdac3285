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
    """Bytes free on a device, on the host for None or a CPU; None where the system does not report it."""
    if device is not None and device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None


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
