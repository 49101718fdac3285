"""The folder of a training, beside the encoder that it writes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from llrag_cli.errors import LlragError, TrainingExistsError, UnwritableError
from llrag_cli.files.durable import create_folder, replacing, require_own
from llrag_cli.files.guarded import MEGABYTE, UnreadableError, json_values, read_bytes, reason_of


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

    def require_ready(self, *, resume: bool, force: bool) -> None:
        """Raise an error if the training cannot be written there, or an earlier one would be replaced unasked."""
        files = (self.out, self.config, self.metrics, self.state, self.curves, self.summary)
        for file in files:
            require_own(file)
        if self.path.exists() and not self.path.is_dir():
            raise UnwritableError(self.path, "not a directory")
        if (self.state.exists() or self.out.exists()) and not resume and not force:
            raise TrainingExistsError(self.out)

    def create(self, *, resume: bool, force: bool) -> None:
        """Create the folder; an earlier training is resumed or replaced only on request."""
        self.require_ready(resume=resume, force=force)
        try:
            create_folder(self.path)
            if force and not resume:
                for file in (self.out, self.config, self.metrics, self.state, self.curves, self.summary):
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise UnwritableError(self.path, (error.strerror or str(error)).lower()) from error
        self.records()  # damaged ones are an error before the first epoch

    def replacing(self, target: Path) -> AbstractContextManager[Path]:
        """Where to write the new content of one of these files, as ``files.durable.replacing``."""
        return replacing(
            target, hint="free some space; the last complete state is kept, and the training can be resumed"
        )

    def records(self) -> list[dict[str, Any]]:
        """The epochs so far."""
        if not self.metrics.exists():
            return []
        try:
            content = read_bytes(self.metrics, limit=64 * MEGABYTE)
            found = [record for _, record in json_values(content, most=10**6, finite=False)]  # a loss may overflow
        except (OSError, UnreadableError) as error:
            problem = f"`{self.metrics}` is damaged: {reason_of(error)}"
            raise LlragError(problem, hint="start the training over, or restore the file") from None
        if not all(isinstance(record, dict) for record in found):
            raise LlragError(
                f"`{self.metrics}` is damaged: it holds a line that is not an epoch",
                hint="start the training over, or restore the file",
            )
        return found
