"""What a scene shows where it returns to an earlier shot, with memory and without, in numbers and in one sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from llrag_cli.evaluation.inspect import retrieved_by_shot
from llrag_cli.evaluation.leave_return.judge import Look, looked_at, shares_of
from llrag_cli.runs.folder import BlockMemory
from llrag_cli.runs.video import read_frames
from llrag_cli.scenes.timeline import ShotSpan, Timeline
from llrag_cli.world.sprites import SHAPES, SIZE, Scene, Sprite

MARGIN = 0.1  # of shares: smaller differences between two videos count as none
KNOWN = 0.25  # of the frames of a place; an object seen in fewer is not one of its objects
LONGEST_PROMPT = 90  # characters of a prompt in the sentence


@dataclass(frozen=True)
class Return:
    """A shot after a cut, and the earlier shot of which it retrieved the most frames."""

    shot: ShotSpan
    place: ShotSpan
    named: bool  # the scene says that the shot remembers this place

    def opening(self, timeline: Timeline) -> str:
        """When the shot begins, where it returns to, and its prompt."""
        at, prompt = clock(timeline.extent(self.shot).start_seconds), _short(self.shot.prompt)
        if self.named:
            return f"At {at} the scene returns to “{self.place.name}” under the prompt “{prompt}”"
        return f"At {at} the scene cuts to “{prompt}”, for which memory retrieved frames of “{self.place.name}”"


@dataclass(frozen=True)
class Sight:
    """How much of a place is seen in a shot: shares of its frames in 0..1, after what the video itself showed there.

    ``color`` and ``shape`` are means over the objects of the place, and None if it has no objects or their shapes are
    not known.
    """

    wall_color: str
    object_colors: tuple[str, ...]
    wall: float
    color: float | None
    shape: float | None


def find_return(timeline: Timeline, blocks: Sequence[BlockMemory]) -> Return | None:
    """The return to look at: one that the scene names, if there is one, and of these the one that retrieved most."""
    counts = retrieved_by_shot(blocks, timeline)
    found: list[tuple[bool, int, Return]] = []
    for number, shot in enumerate(timeline.shots):
        for place in timeline.shots[:number] if shot.kind == "cut" else ():
            if count := counts[shot.name].get(place.name, 0):
                named = place.name in shot.remember if shot.remember != "all" else False
                found.append((named, count, Return(shot, place, named)))
    return max(found, key=lambda each: each[:2])[2] if found else None


def measure(video: Path, timeline: Timeline, found: Return) -> Sight:
    """What the shot of a return shows of its place, both as this video has them."""
    with _one_thread():
        return sight(*_looks(video, timeline, found))


def _looks(video: Path, timeline: Timeline, found: Return) -> list[list[Look]]:
    """The content of each frame of the place and of the shot."""
    extents = [timeline.extent(shot).video_frames for shot in (found.place, found.shot)]
    looks: list[list[Look]] = [[], []]
    for number, frame in enumerate(read_frames(video)):
        for span, seen in zip(extents, looks, strict=True):
            if number in span:
                seen += looked_at(F.interpolate(frame[None], size=(SIZE, SIZE), mode="area"))
    return looks


@contextmanager
def _one_thread() -> Iterator[None]:
    """Looking is many small operations, for which threads that wait for each other take long on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def sight(place: Sequence[Look], shown: Sequence[Look]) -> Sight:
    """What frames show of a place, which is known from frames of its own."""
    wall = Counter(frame.wall for frame in place).most_common(1)[0][0]
    shapes = known_objects(place)
    sprites = tuple(Sprite(color, shape or SHAPES[0], "large") for color, shape in shapes.items())
    if not sprites:
        return Sight(wall, (), sum(frame.wall == wall for frame in shown) / len(shown), None, None)
    shares = shares_of(Scene(sprites, wall, "plain", "bounce"), shown)
    return Sight(wall, tuple(shapes), shares.wall, shares.color, shares.shape if all(shapes.values()) else None)


def known_objects(place: Sequence[Look]) -> dict[str, str | None]:
    """Colours of the objects of a place, each with its most frequent shape; None: it was always cut off."""
    counts = Counter(each.color for frame in place for each in frame.objects)
    shapes: dict[str, Counter[str]] = {color: Counter() for color, n in counts.items() if n >= KNOWN * len(place)}
    for each in (each for frame in place for each in frame.objects if each.color in shapes):
        if each.shape is not None:
            shapes[each.color][each.shape] += 1
    return {color: next((shape for shape, _ in found.most_common(1)), None) for color, found in shapes.items()}


def sentence(timeline: Timeline, found: Return | None, native: Sight | None, memory: Sight | None) -> str:
    """What to look at, and what was measured there."""
    if found is None:
        return "No shot after a cut retrieved frames of an earlier shot, so no return was measured: compare by eye."
    opening = found.opening(timeline)
    if native is None or memory is None:
        return f"{opening}; nothing was measured, because walls and objects are only known of the embedded model."
    kind = compared(native, memory)
    return f"{opening}{_VERDICTS[kind]}: {_numbers(native, memory)}."


_VERDICTS = {
    "better": "",
    "same": "; memory made no difference that could be measured",
    "worse": "; memory did not help",
    "mixed": "; the result is mixed",
}


def compared(native: Sight, memory: Sight) -> str:
    """``better``, ``same``, ``worse`` or ``mixed``: wall and colours with memory, compared with those without."""
    pairs = [(native.wall, memory.wall)]
    if native.color is not None and memory.color is not None:
        pairs.append((native.color, memory.color))
    gains = {round((with_memory - without) / MARGIN, 6) for without, with_memory in pairs}
    helped, harmed = any(gain >= 1 for gain in gains), any(gain <= -1 for gain in gains)
    return "mixed" if helped and harmed else "better" if helped else "worse" if harmed else "same"


def _numbers(native: Sight, memory: Sight) -> str:
    """What is seen with memory, and without: of the wall, and of the objects if both videos have some."""
    what = [f"its {native.wall_color} wall" if native.wall_color == memory.wall_color else "its wall"]
    shares = [(memory.wall, native.wall)]
    if memory.color is not None and native.color is not None:
        same = {*native.object_colors} == {*memory.object_colors}
        what.append(f"the {_listed(native.object_colors) if same else 'colours'} of its objects")
        shares.append((memory.color, native.color))
    seen = [f"{what[0]} is seen in {percent(memory.wall)} of the frames"]
    seen += [f"{name} in {percent(share)}" for name, (share, _) in zip(what[1:], shares[1:], strict=True)]
    return f"with memory {' and '.join(seen)}, without memory in {' and '.join(percent(share) for _, share in shares)}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def percent(share: float | None) -> str:
    """A share as people read it."""
    return "–" if share is None else f"{100 * share:.0f} %"


def clock(seconds: float) -> str:
    """A time of the video: ``0:14``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= LONGEST_PROMPT else prompt[: LONGEST_PROMPT - 1].rstrip() + "…"
