"""What each block of a video could retrieve, and what not, and why: computed again from its timeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from llrag_cli.memory.context import Stretch, candidate_frames, evicted_until, recache_of
from llrag_cli.memory.strategies import MemoryConfig, RetrievalMemory
from llrag_cli.scenes.timeline import ShotSpan, Timeline


def stretches(memory: MemoryConfig, timeline: Timeline) -> tuple[Stretch, ...]:
    """The stretch that the blocks of each shot are counted by: cuts begin one, and switches may move its sink."""
    found: list[Stretch] = []
    stretch = Stretch()
    for shot in timeline.shots:
        start = shot.start * timeline.frames_per_block
        if shot.kind == "cut":
            stretch = stretch.cut(start, keep=memory.sink if shot.sink != shot.name else 0)
        elif shot.kind == "switch":
            recache = recache_of(
                memory, start=stretch.time(start), sink_start=stretch.sink, lead=stretch.lead, rule=shot.recache
            )
            stretch = stretch if recache is None else stretch.with_sink(recache.sink_start)
        found.append(stretch)
    return tuple(found)


@dataclass(frozen=True)
class Replay:
    """The candidates of each block of a video, and the frames that are none. Frames of references are negative."""

    memory: RetrievalMemory
    timeline: Timeline

    @cached_property
    def _stretches(self) -> dict[str, Stretch]:
        names = [shot.name for shot in self.timeline.shots]
        return dict(zip(names, stretches(self.memory, self.timeline), strict=True))

    def stretch_at(self, block: int) -> Stretch:
        """The stretch that a block is in."""
        return self._stretches[self.timeline.shot_at(block).name]

    def places(self, shot: ShotSpan) -> int:
        """How many frames a block of a shot can retrieve: pinned frames take the place of others."""
        return self.memory.retrieved - len(self.timeline.pinned_for(shot))

    def candidates(self, block: int) -> Sequence[int]:
        """Frames that a block could retrieve, rising."""
        shot = self.timeline.shot_at(block)
        if self.places(shot) <= 0:
            return ()
        return candidate_frames(
            self.memory,
            self.stretch_at(block),
            start=self._start(block),
            references=range(-self.timeline.reference_count, -self.timeline.pinned_frames),
            shot=self._start(shot.start),
            remembered=self.timeline.remembered(shot),
        )

    def window(self, block: int) -> range:
        """Frames before a block that are no candidates because its window has them, or the guard keeps them back."""
        start = self._start(block)
        return range(evicted_until(self.memory, self.stretch_at(block), start=start), start)

    def sink(self, block: int) -> range:
        """Frames of the sink that lie before a block, attended to by it."""
        start, first = self._start(block), self.stretch_at(block).sink_start
        return range(min(first, start), min(first + self.memory.sink, start))

    def forgotten(self, shot: ShotSpan) -> dict[str, range]:
        """Frames of earlier shots and of references that the blocks of a shot may not remember, by name."""
        allowed = self.timeline.eligible(shot.start)
        earlier = {
            other.name: self.timeline.extent(other).latent_frames
            for other in self.timeline.shots
            if other.start < shot.start
        }
        spans = {**self.timeline.reference_frames, **earlier}
        return {name: span for name, span in spans.items() if name not in allowed}

    def near_guard(self, block: int, frame: int, *, within: int = 8) -> bool:
        """Whether a frame is one of the newest evicted ones of the block's stretch, which a longer window would have.

        Frames of references and of before the last cut are not.
        """
        edge = self.window(block).start
        return frame >= self.stretch_at(block).origin and 0 < edge - frame <= within

    def _start(self, block: int) -> int:
        return block * self.timeline.frames_per_block
