"""Latents of videos on disk: one file per video, with metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from llrag_cli.errors import CollectionDiffersError, LlragError, UnwritableError
from llrag_cli.files.durable import create_folder, replace_text, replacing, require_own
from llrag_cli.files.guarded import MEGABYTE, UnreadableError, parse_json, read_bytes, reason_of
from llrag_cli.files.records import Record, parse_as
from llrag_cli.files.tensors import damaged, read_file, read_metadata, require_floating

RECORD = "collection.json"


class CollectionRecord(Record):
    """The content of ``collection.json``: the settings that all videos of a folder share, as far as they were given."""

    config: dict[str, Any] | None = None
    prompts_sha256: str | None = None
    prompts: int | None = None
    ratio: float | None = None
    seconds: float | None = None
    seed: int | None = None
    latent_frames: int | None = None


@dataclass(frozen=True)
class LatentVideo:
    """Latents [F, C, H, W] of one video, and their metadata (none in the original's files)."""

    path: Path
    latents: Tensor
    about: Mapping[str, Any]


class LatentFolder:
    """A folder of ``latent_000012.safetensors``, and ``collection.json`` with the settings that all of them share.

    A file is named by the number of its prompt and written atomically, so several workers can fill one folder, and
    an interrupted collection can be resumed. The original system's ``latent_000012.pt`` can be read too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, number: int) -> Path:
        """The file of a video's latents."""
        return self.path / f"latent_{number:06d}.safetensors"

    def require_same(self, common: Mapping[str, Any]) -> None:
        """Raise an error if the folder was begun with other settings."""
        record = self.path / RECORD
        require_own(record)
        try:
            if not record.exists():
                return
            before = parse_as(CollectionRecord, read_bytes(record, limit=MEGABYTE)).model_dump(exclude_unset=True)
        except UnreadableError as error:
            raise LlragError(f"`{record}` is damaged: {reason_of(error)}", hint="remove it") from None
        except OSError as error:
            raise UnwritableError(self.path, (error.strerror or str(error)).lower()) from error
        if changed := sorted(key for key in common.keys() | before.keys() if common.get(key) != before.get(key)):
            raise CollectionDiffersError(self.path, changed)

    def begin(self, common: Mapping[str, Any]) -> None:
        """Create the folder, or continue one with the same settings; other settings are an error."""
        self.require_same(common)
        record = self.path / RECORD
        try:
            create_folder(self.path)
            if record.exists():
                return
        except OSError as error:
            raise UnwritableError(self.path, (error.strerror or str(error)).lower()) from error
        text = json.dumps(common, indent=1, sort_keys=True) + "\n"
        replace_text(record, text, hint="free some space, or choose another folder")

    def write(self, number: int, latents: Tensor, about: Mapping[str, Any]) -> Path:
        """Write the latents [F, C, H, W] of a video."""
        target = self.file(number)
        hint = "free some space; latents that were written before are kept"
        with replacing(target, hint=hint) as partial:
            save_file({"latents": latents.cpu().contiguous()}, partial, metadata={"about": json.dumps(about)})
        return target

    def files(self) -> list[Path]:
        """All files of latents, by number."""
        found = [
            path for path in self.path.glob("latent_*") if re.fullmatch(r"latent_\d+\.(safetensors|pt)", path.name)
        ]
        return sorted(found, key=lambda path: (int(re.findall(r"\d+", path.stem)[0]), path.suffix))


def read_latents(path: Path) -> LatentVideo:
    """One file of latents, ours or the original's, memory-mapped; a damaged or non-finite one is an error."""
    latents, about = _tensor(read_file(path), path), {}
    if path.suffix == ".safetensors":
        try:
            about = parse_json(read_metadata(path).get("about", "{}"))
        except UnreadableError as error:
            raise damaged(path, error) from None
        if not isinstance(about, dict):
            raise damaged(path, ValueError("`about` in its metadata is not an object"))
    require_floating({"latents": latents}, source=str(path))
    if not torch.isfinite(latents).all():
        raise LlragError(f"`{path}` contains values that are not finite", hint="remove the file and collect it again")
    return LatentVideo(path, latents, about)


def _plausible(latents: Tensor) -> bool:
    """Whether there is a frame, and its sizes are those that an encoder can be trained on."""
    return latents.numel() > 0 and max(latents.shape[-3:]) <= 4096


def _tensor(content: Any, path: Path) -> Tensor:
    if isinstance(content, Mapping):
        tensors = [value for value in content.values() if isinstance(value, Tensor)]
        content = tensors[0] if len(tensors) == 1 else content.get("latents")
    if (
        not isinstance(content, Tensor)
        or content.ndim not in (4, 5)
        or (content.ndim == 5 and len(content) != 1)
        or not _plausible(content)
    ):
        raise LlragError(
            f"`{path}` does not contain the latents of a video", hint="expected a tensor [frames, C, H, W]"
        )
    return content[0] if content.ndim == 5 else content
