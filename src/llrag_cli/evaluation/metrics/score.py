"""All metrics of one video from one pass over its frames; two clips are in memory, however long the video is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
    metrics = metrics_of(backend, sprites=sprites)
    series = {metric.series.name: metric.series for metric in metrics if metric.series is not None}
    per_clip: dict[str, list[float | None]] = {name: [] for name in series}
    length = clip_length(fps)
    count = 0
    looks: list[Look] = []

    def observed() -> Iterator[Tensor]:
        nonlocal count
        for frame in frames:
            if backend.kind == "offline" and min(frame.shape[1:]) < SMALLEST:
                raise UsageError(
                    f"a video of {frame.shape[2]}x{frame.shape[1]} pixels cannot be scored",
                    hint=f"width and height are at least {SMALLEST} pixels",
                )
            if sprites and count % SPRITE_EVERY == 0:
                looks.append(look(frame))
            count += 1
            yield frame

    clips = 0
    clip: Clip | None = None
    for pictures in clips_of(observed(), length=length):
        clip = clip_inputs(pictures, fps=fps, backend=backend, before=clip)
        clips += 1
        for name, one in series.items():
            per_clip[name].append(one.measure(clip))
    values: dict[str, float | None] = {}
    kept = _sprite_consistency(looks) if len(looks) > 1 else None
    video = Video(per_clip, values, length / fps, backend, kept)
    for metric in metrics:
        values[metric.name] = metric.compute(video)
    return Scores(count, clips, values, per_clip)


def _sprite_consistency(looks: list[Look]) -> Consistency:
    """Judge a video by its first third."""
    third = max(1, len(looks) // 3)
    return consistency(looks, reference=third, stretch=range(third, len(looks)))
