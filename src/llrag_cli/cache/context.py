"""What a block attends to besides itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Context:
    """Past frames and the rotary time each is attended at.

    ``retrieved`` holds frames of each video of the batch, all rows equally long, and ``retrieved_times`` a time for
    each; ``shared`` frames are the same for all. Times are rotary frame positions; those of the block count up from
    ``start_time``.
    """

    shared: tuple[int, ...]
    shared_times: tuple[int, ...]
    start_time: int
    retrieved: tuple[tuple[int, ...], ...] = ()  # [B][K]
    retrieved_times: tuple[tuple[float, ...], ...] = ()  # [B][K]
    hidden: range = range(0)  # frames of the block, counted from its first, that it does not attend to itself

    def __post_init__(self) -> None:
        """Raise ``ValueError`` unless every frame has one time."""
        sizes = [[len(row) for row in rows] for rows in (self.retrieved, self.retrieved_times)]
        if len(self.shared) != len(self.shared_times) or sizes[0] != sizes[1]:
            raise ValueError("every frame of a context needs one time")

    @property
    def retrieved_count(self) -> int:
        """Frames retrieved for each video of the batch."""
        return len(self.retrieved[0]) if self.retrieved else 0

    @property
    def frame_count(self) -> int:
        """Past frames attended to."""
        return len(self.shared) + self.retrieved_count
