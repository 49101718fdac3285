"""Records of runs for tests."""

from __future__ import annotations

from typing import Any

from llrag_cli.presets import load_config
from llrag_cli.runs.record import RunRecord, ScheduledPrompt
from llrag_cli.runs.statistics import ArchiveUse


def record_of(memory: str | None = None, **changes: Any) -> RunRecord:
    """The record of a finished run of the embedded model."""
    record = RunRecord(
        status="complete",
        prompt_schedule=(ScheduledPrompt(block=0, prompt="a cat"),),
        seed=0,
        seconds=2.0,
        image=None,
        latent_frames=6,
        latent_shape=(8, 8, 8),
        video_frames=21,
        fps=8,
        device="cpu",
        dtype="float32",
        versions={"torch": "2.9"},
        config=load_config("tiny", memory=memory),
        archive=ArchiveUse(tier="device", retrieved=8, moved=2),
    )
    return record.updated(**changes)
