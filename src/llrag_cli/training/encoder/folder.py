"""The folder of a training, beside the encoder that it writes."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from llrag_cli.errors import TrainingExistsError, UnwritableError
from llrag_cli.files.durable import replacing


class TrainingFolder:
    """Beside ``encoder.safetensors``, ``encoder.training/``: settings, metrics, curves, state to resume from."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.path = out.with_suffix(".training")
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.state = self.path / "last.pt"
        self.curves = self.path / "curves.png"
        self.summary = self.path / "summary.html"

    def create(self, *, resume: bool, force: bool) -> None:
        """Create the folder; an earlier training is resumed or replaced only on request."""
        try:
            begun = self.state.exists() or self.out.exists()
            if begun and not resume and not force:
                raise TrainingExistsError(self.out)
            self.path.mkdir(parents=True, exist_ok=True)
            if force and not resume:
                for file in (self.out, self.config, self.metrics, self.state, self.curves, self.summary):
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise UnwritableError(self.path, (error.strerror or str(error)).lower()) from error

    def replacing(self, target: Path) -> AbstractContextManager[Path]:
        """Where to write the new content of one of these files, as ``files.durable.replacing``."""
        return replacing(
            target, hint="free some space; the last complete state is kept, and the training can be resumed"
        )

    def records(self) -> list[dict[str, Any]]:
        """The epochs so far."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]
