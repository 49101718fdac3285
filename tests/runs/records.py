"""Records of runs for tests."""

from __future__ import annotations

from typing import Any

from llrag_cli.presets import load_config
from llrag_cli.runs.record import RunRecord
from llrag_cli.runs.statistics import ArchiveUse
from llrag_cli.scenes.timeline import one_shot


def record_of(memory: str | None = None, **changes: Any) -> RunRecord:
    """The record of a finished run of the embedded model."""
    config = load_config("tiny", memory=memory)
    record = RunRecord(
        status="complete",
        timeline=one_shot("a cat", config, latent_frames=6),
        seed=0,
        seconds=2.0,
        latent_frames=6,
        latent_shape=(8, 8, 8),
        video_frames=21,
        fps=8,
        device="cpu",
        dtype="float32",
        versions={"torch": "2.9"},
        config=config,
        archive=ArchiveUse(tier="device", retrieved=8, moved=2),
    )
    return record.updated(**changes)
