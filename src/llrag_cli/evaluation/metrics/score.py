"""All metrics of one video from one pass over its frames; two clips are in memory, however long the video is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from llrag_cli.errors import UsageError
from llrag_cli.evaluation.metrics.clips import clip_length, clips_of
from llrag_cli.evaluation.metrics.inputs import Backend, Clip, Video, clip_inputs
from llrag_cli.evaluation.metrics.registry import metrics_of
from llrag_cli.world.consistency import Consistency, Look, consistency, look

SMALLEST = 16  # pixels along a side, as the offline optical flow needs
SPRITE_EVERY = 4  # video frames between those that sprites are read from


@dataclass(frozen=True)
class Scores:
    """The metrics of one video by name, None where it is too short for one; and each series, one number a clip."""

    frames: int
    clips: int
    metrics: dict[str, float | None]
    per_clip: dict[str, list[float | None]]


def score(frames: Iterable[Tensor], *, fps: float, backend: Backend, sprites: bool = False) -> Scores:
    """Compute the metrics of a video given as frames [3, H, W] in [0, 1], in order.

    ``sprites``: also those of the sprite world.
    """
    (scores,) = score_beginnings(frames, None, fps=fps, backend=backend, sprites=sprites)
    return scores


def score_beginnings(
    frames: Iterable[Tensor], ends: Sequence[int] | None, *, fps: float, backend: Backend, sprites: bool = False
) -> list[Scores]:
    """As ``score``, of the first ``ends`` frames of a video, rising, from one pass over the longest.

    None for the whole video. A beginning longer than the video is the whole video.
    """
    metrics = metrics_of(backend, sprites=sprites)
    series = {metric.series.name: metric.series for metric in metrics if metric.series is not None}
    per_clip: dict[str, list[float | None]] = {name: [] for name in series}
    length = clip_length(fps)
    count = 0
    looks: list[Look] = []

    def observed() -> Iterator[Tensor]:
        nonlocal count
        for frame in frames if ends is None else islice(frames, ends[-1]):
            if backend.kind == "offline" and min(frame.shape[1:]) < SMALLEST:
                raise UsageError(
                    f"a video of {frame.shape[2]}x{frame.shape[1]} pixels cannot be scored",
                    hint=f"width and height are at least {SMALLEST} pixels",
                )
            if sprites and count % SPRITE_EVERY == 0:
                looks.append(look(frame))
            count += 1
            yield frame

    def scores(last: Mapping[str, float | None] | None) -> Scores:
        clips = {name: [*found, *([] if last is None else [last[name]])] for name, found in per_clip.items()}
        values: dict[str, float | None] = {}
        kept = _sprite_consistency(looks) if len(looks) > 1 else None
        video = Video(clips, values, length / fps, backend, kept)
        for metric in metrics:
            values[metric.name] = metric.compute(video)
        return Scores(count, whole + (last is not None), values, clips)

    whole = 0
    clip: Clip | None = None
    last: dict[str, float | None] | None = None
    found: dict[int, Scores] = {}
    for part in clips_of(observed(), length=length, ends=ends or ()):
        now = clip_inputs(part.frames, fps=fps, backend=backend, before=clip)
        measured = {name: one.measure(now) for name, one in series.items()}
        last = None if part.is_whole else measured
        if part.is_whole:
            whole, clip = whole + 1, now
            for name, value in measured.items():
                per_clip[name].append(value)
        if ends is not None and part.end in ends:
            found[part.end] = scores(last)
    whole_video = scores(last) if ends is None or ends[-1] not in found else found[ends[-1]]
    return [whole_video] if ends is None else [found.get(end, whole_video) for end in ends]


def _sprite_consistency(looks: list[Look]) -> Consistency:
    """Judge a video by its first third."""
    third = max(1, len(looks) // 3)
    return consistency(looks, reference=third, stretch=range(third, len(looks)))
