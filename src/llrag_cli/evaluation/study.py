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
from filelock import FileLock
from PIL import Image
from torch import Tensor

from llrag_cli.batch.sharing import shared
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.errors import RunLockedError, UnwritableError
from llrag_cli.evaluation.statistics import interval
from llrag_cli.evaluation.study_plan import Key, complete_lines, finished_rows, not_continued
from llrag_cli.files.durable import AppendFile, create_folder, replace_text, replacing
from llrag_cli.files.guarded import UnreadableError
from llrag_cli.files.locks import only_one


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
        lines = finished_rows(self.root, self._settings)
        try:
            return self._in_order([self._row.parse(line.decode(errors="replace")) for line in lines])
        except UnreadableError as error:
            raise not_continued(self._file, error) from None

    def _in_order(self, rows: Sequence[RowT]) -> list[RowT]:
        places = {key: place for place, key in enumerate(self._keys)}
        return sorted(rows, key=lambda row: places.get(row.key, len(places)))

    @property
    def _file(self) -> Path:
        return self.root / "rows.jsonl"

    @property
    def _pictures(self) -> Path:
        return self.root / "pictures"

    def picture(self, scene: int, seed: int, shot: str) -> Path:
        """The file with the picture of a row."""
        return self._pictures / f"{scene:02d}-seed{seed}-{shot}.png"

    def missing(self) -> list[Key]:
        """The rows still to make."""
        done = {row.key for row in self.rows}
        return [key for key in self._keys if key not in done]

    def run(
        self,
        pipeline: Pipeline,
        on_row: Callable[[RowT], None] = lambda _: None,
        on_wait: Callable[[RunLockedError, int], None] = lambda error, count: None,
    ) -> list[RowT]:
        """Make the missing rows, and return all, in their order.

        Several processes share the work: scenes that another one is making come last, as in ``shared``. ``on_row`` is
        called for each row that was missing, whoever made it.
        """
        if not self.missing():
            return self.rows
        try:
            create_folder(self._pictures)
        except OSError as error:
            raise UnwritableError(self.root, (error.strerror or str(error)).lower()) from error
        replace_text(self.root / "settings.json", json.dumps(self._settings, indent=1) + "\n")

        def attempt(scenes: Sequence[int]) -> None:
            with only_one(self._pictures / f".scene-{scenes[0]:02d}.lock", writing=self.root):
                known = {row.key for row in self.rows}
                self.rows = self._read()
                for row in self.rows:
                    if row.key not in known:
                        on_row(row)
                if keys := [key for key in self.missing() if key[0] in scenes]:
                    for row, picture in self.make(pipeline, keys):
                        self._keep_row(row, picture)
                        on_row(row)

        missing = {scene for scene, _, _ in self.missing()}
        scenes = [*dict.fromkeys(scene for scene, _, _ in self._keys)]
        together = [scenes[first : first + self.scenes_at_once] for first in range(0, len(scenes), self.scenes_at_once)]
        for _ in shared([each for each in together if missing.intersection(each)], attempt, on_wait=on_wait):
            pass
        for lock in self._pictures.glob(".*.lock"):
            lock.unlink(missing_ok=True)  # nothing is left that another process could make
        return self.rows

    def _keep_row(self, row: RowT, picture: Image.Image) -> None:
        with replacing(self.picture(*row.key)) as partial:
            picture.save(partial, format="PNG")
        with FileLock(self._pictures / ".rows.lock"):  # held for moments
            whole = sum(len(line) for line in complete_lines(self._file))  # what a crash has left of a line is dropped
            with AppendFile(self._file, length=whole) as file:
                file.append(json.dumps(asdict(row)).encode() + b"\n")
        self.rows = self._in_order([*self.rows, row])


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
