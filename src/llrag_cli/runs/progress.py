"""How far a run is, as it is reported after each block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """State of a run after a block."""

    blocks: int  # of the whole video
    resumed_at: int = 0  # blocks that were finished before this process started
    done: int = 0
    seconds_of_video: float = 0.0
    new_seconds: float = 0.0  # of video, from blocks that this process generated
    elapsed: float = 0.0  # wall seconds since the first new block was started
    retrieved: tuple[int, ...] = ()  # latent frames retrieved for the last block

    @property
    def speed(self) -> float:
        """Seconds of video generated per second of work."""
        return self.new_seconds / self.elapsed if self.elapsed else 0.0


OnProgress = Callable[[Progress], None]
