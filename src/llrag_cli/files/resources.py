"""Memory and disk space that are free."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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


def free_disk(folder: Path) -> int | None:
    """Bytes free on the disk of a folder, which need not exist yet; None where the system does not report it."""
    folder = folder.absolute()
    try:
        return shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
    except OSError:
        return None
