"""Latents of videos on disk: one file a video, with what it was made from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.durable import replace_text, replacing
from llrag_cli.files.tensors import read_file

RECORD = "collection.json"


@dataclass(frozen=True)
class LatentVideo:
    """Latents [F, C, H, W] of one video, and what they were made from (nothing, in the original's files)."""

    path: Path
    latents: Tensor
    about: Mapping[str, Any]


class LatentFolder:
    """A folder of ``latent_000012.safetensors``; ``collection.json`` says what all of them have in common.

    Names come from a video's number in its prompt file, and a file appears only when it is whole, so any
    number of workers fill one folder, and one that was interrupted goes on where it stopped. The original
    system's ``latent_000012.pt`` is read too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, number: int) -> Path:
        """Where the latents of a video go."""
        return self.path / f"latent_{number:06d}.safetensors"

    def begin(self, common: Mapping[str, Any]) -> None:
        """Make the folder, or go on in one that was begun in the same way; another way is an error."""
        record = self.path / RECORD
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if record.exists():
                before = json.loads(record.read_text(encoding="utf-8"))
                changed = sorted(key for key in common.keys() | before.keys() if common.get(key) != before.get(key))
                if changed:
                    raise UsageError(
                        f"`{self.path}` was begun with another `{changed[0]}`",
                        hint="choose another `--out`, or repeat the command that began it",
                    )
                return
            text = json.dumps(common, indent=1, sort_keys=True) + "\n"
            replace_text(record, text, hint="make room, or choose another `--out`")
        except ValueError as error:
            raise LlragError(f"`{record}` cannot be read: {error}", hint="it is damaged; remove it") from None
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"`{self.path}` cannot be written: {reason}", hint="choose another `--out`") from error

    def write(self, number: int, latents: Tensor, about: Mapping[str, Any]) -> Path:
        """Keep the latents [F, C, H, W] of a video."""
        target = self.file(number)
        hint = "make room; what was collected before is kept, and the same command goes on"
        with replacing(target, hint=hint) as partial:
            save_file({"latents": latents.cpu().contiguous()}, partial, metadata={"about": json.dumps(about)})
        return target

    def files(self) -> list[Path]:
        """Every file of latents, in order of number."""
        found = [
            path for path in self.path.glob("latent_*") if re.fullmatch(r"latent_\d+\.(safetensors|pt)", path.name)
        ]
        return sorted(found, key=lambda path: (int(re.findall(r"\d+", path.stem)[0]), path.suffix))


def read_latents(path: Path) -> LatentVideo:
    """One file of latents, ours or the original's, mapped; damaged, or not finite everywhere, it is an error."""
    latents, about = _tensor(read_file(path), path), {}
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
    if not torch.isfinite(latents).all():
        raise LlragError(f"`{path}` has values that are not finite", hint="remove the file, or collect it again")
    return LatentVideo(path, latents, about)


def _tensor(content: Any, path: Path) -> Tensor:
    if isinstance(content, Mapping):
        tensors = [value for value in content.values() if isinstance(value, Tensor)]
        content = tensors[0] if len(tensors) == 1 else content.get("latents")
    if not isinstance(content, Tensor) or content.ndim not in (4, 5) or (content.ndim == 5 and len(content) != 1):
        raise LlragError(f"`{path}` holds no latents of one video", hint="expected a tensor [frames, C, H, W]")
    return content[0] if content.ndim == 5 else content
