"""A study: videos of fixed scenes under several conditions, judged one by one; what such experiments share.

Each row is one scene, seed and shot (or condition). Rows are appended to a file as they are finished, so that an
interrupted study can be continued, under the same settings and with the same weights only.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.errors import LlragError, UnwritableError, UsageError
from llrag_cli.evaluation.statistics import interval
from llrag_cli.evaluation.study_plan import Key
from llrag_cli.files.durable import AppendFile, create_folder, replace_text, replacing, require_own
from llrag_cli.files.guarded import MEGABYTE, UnreadableError, parse_json, read_bytes, reason_of


@dataclass(frozen=True)
class StudyRow(ABC):
    """One shot of one video, judged."""

    scene: int  # from 1
    seed: int  # of the scene, from 0
    shot: str  # or the name of a condition

    @property
    def key(self) -> Key:
        """What the row is of."""
        return self.scene, self.seed, self.shot

    @classmethod
    @abstractmethod
    def parse(cls, line: str) -> Self:
        """A row from a line of the file. Raises ``UnreadableError``."""


RowT = TypeVar("RowT", bound=StudyRow)

FOLDERS = ("pictures", "videos")
FILES = ("settings.json", "rows.jsonl", "results.json", "results.csv", "sheet.png", *FOLDERS)  # of a study


class StudyFolder(ABC, Generic[RowT]):
    """A folder with ``settings.json``, ``rows.jsonl`` and a picture of each row, which it continues.

    ``settings`` are what has to agree, ``keys`` all rows in the order in which they are made, scene by scene.
    """

    scenes_at_once = 1  # rows of so many are made together

    def __init__(self, root: Path, row: type[RowT], *, settings: Mapping[str, Any], keys: Sequence[Key]) -> None:
        self.root = root
        self._row, self._settings, self._keys = row, settings, keys
        self.rows: list[RowT] = self._read()

    @abstractmethod
    def make(self, pipeline: Pipeline, keys: Sequence[Key]) -> Iterator[tuple[RowT, Image.Image]]:
        """Rows of one scene, or of ``scenes_at_once``, and their pictures."""

    def _read(self) -> list[RowT]:
        """The finished rows of the folder; raises if it was begun under other settings."""
        file = reading = self.root / "settings.json"
        for name in FILES:
            require_own(self.root / name, folder=name in FOLDERS)
        if not file.exists():
            if self.root.is_dir() and any(not path.name.startswith(FILES) for path in self.root.iterdir()):
                raise UsageError(f"`{self.root}` exists and is not empty", hint="choose another folder")
            return []
        try:
            found = parse_json(read_bytes(file))
            if not isinstance(found, dict):
                raise UnreadableError("it is not an object")
            reading = self._file
            rows = [self._row.parse(line.decode(errors="replace")) for line in self._lines()]
        except (OSError, UnreadableError) as error:
            problem = f"`{self.root}` cannot be continued: `{reading.name}`: {reason_of(error)}"
            raise LlragError(problem, hint="choose another folder") from None
        wanted = self._settings
        if differing := [name for name in wanted if found.get(name) != wanted[name]]:
            raise UsageError(
                f"`{self.root}` was begun with other settings: {', '.join(f'`{name}`' for name in differing)} differ",
                hint="choose another folder, or the settings in its settings.json",
            )
        return rows

    @property
    def _file(self) -> Path:
        return self.root / "rows.jsonl"

    def picture(self, scene: int, seed: int, shot: str) -> Path:
        """The file with the picture of a row."""
        return self.root / "pictures" / f"{scene:02d}-seed{seed}-{shot}.png"

    def missing(self) -> list[Key]:
        """The rows still to make."""
        done = {row.key for row in self.rows}
        return [key for key in self._keys if key not in done]

    def run(self, pipeline: Pipeline, on_row: Callable[[RowT], None] = lambda _: None) -> list[RowT]:
        """Make the missing rows, and return all."""
        missing = self.missing()
        if not missing:
            return self.rows
        try:
            create_folder(self.root / "pictures")
        except OSError as error:
            raise UnwritableError(self.root, (error.strerror or str(error)).lower()) from error
        replace_text(self.root / "settings.json", json.dumps(self._settings, indent=1) + "\n")
        whole = sum(len(line) for line in self._lines())  # what a crash has left of a line is dropped
        with AppendFile(self._file, length=whole) as file:
            scenes = [*dict.fromkeys(scene for scene, _, _ in missing)]
            for first in range(0, len(scenes), self.scenes_at_once):
                together = scenes[first : first + self.scenes_at_once]
                for row, picture in self.make(pipeline, [key for key in missing if key[0] in together]):
                    with replacing(self.picture(*row.key)) as partial:
                        picture.save(partial, format="PNG")
                    file.append(json.dumps(asdict(row)).encode() + b"\n")
                    self.rows.append(row)
                    on_row(row)
        return self.rows

    def _lines(self) -> list[bytes]:
        content = read_bytes(self._file, limit=16 * MEGABYTE) if self._file.exists() else b""
        return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def unit_range(parts: Sequence[Tensor]) -> Tensor:
    """Decoded frames [B, t, 3, H, W] of consecutive blocks as one tensor, from [-1, 1] to [0, 1]."""
    return ((torch.cat([*parts], dim=1) + 1) / 2).clamp(0, 1)


def image_of(frame: Tensor) -> Image.Image:
    """A frame [3, H, W] in [0, 1] as a picture."""
    pixels = (255 * frame.permute(1, 2, 0)).round().byte().cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))


def estimate(values: Sequence[float], *, scenes: Sequence[int]) -> dict[str, float]:
    """Mean, and 95 % interval from a bootstrap over scenes; nan is ignored."""
    return dict(zip(("mean", "low", "high"), interval(values, clusters=scenes), strict=True))
