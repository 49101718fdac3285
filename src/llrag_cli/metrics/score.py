"""Every figure of one video from one pass over its frames; memory holds one clip, however long the video is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llrag_cli.metrics.clips import clip_length, clips_of
from llrag_cli.metrics.consistency import sequence_score
from llrag_cli.metrics.features import Features, efficientnet_features
from llrag_cli.metrics.motion import Flow, dis_flow, is_dynamic, smoothness
from llrag_cli.metrics.pixels import chroma_noise, colorfulness, flicker, histogram, overlap


@dataclass(frozen=True)
class BackEnd:
    """What compares frames and sees motion; scores of different back ends are never compared."""

    name: str
    features: Features  # compared within clips, and over the whole video
    flow: Flow
    first_features: Features | None = None  # compared across clips, on their first frames; None: the same


def offline() -> BackEnd:
    """Models that come with their packages: nothing to download."""
    return BackEnd("offline: EfficientNet-lite0, DIS flow", efficientnet_features(), dis_flow())


@dataclass
class Scores:
    """Figures of one video; None where it is too short for one. Lists have one entry a clip."""

    frames: int = 0
    clips: int = 0
    consistency_within: float | None = None  # VBench's sequence score inside clips, their mean
    consistency_across: float | None = None  # the same over the first frames of all clips
    motion_smoothness: float | None = None
    dynamic_degree: float | None = None  # share of clips that move
    temporal_flickering: float | None = None
    first_to_last: float | None = None  # cosine of the mean features of the first and the last clip
    similarity_slope: float | None = None  # change a minute of the cosine of clips to the first one
    chroma_noise_growth: float | None = None  # last clip minus first, in 0..255
    colorfulness_growth: float | None = None
    histogram_overlap: float | None = None  # of the first and the last clip
    smoothness_by_quarter: list[float] = field(default_factory=list)
    per_clip: dict[str, list[float | None]] = field(default_factory=dict)


def score(frames: Iterable[Tensor], *, fps: float, back_end: BackEnd) -> Scores:
    """Measure a video given as frames [3, H, W] in [0, 1], in order."""
    scores = Scores()
    series: dict[str, list[float | None]] = {
        name: []
        for name in ("consistency", "smoothness", "dynamic", "flicker", "chroma_noise", "colorfulness", "to_first")
    }
    firsts: list[Tensor] = []
    means: list[Tensor] = []
    colors: list[Tensor] = []
    length = clip_length(fps)

    def counted() -> Iterable[Tensor]:
        for frame in frames:
            scores.frames += 1
            yield frame

    for clip in clips_of(counted(), length=length):
        features = back_end.features(clip)  # [T, D]
        first = features[0] if back_end.first_features is None else back_end.first_features(clip[:1])[0]
        firsts.append(first.clone())  # a view would keep the features of all frames
        mean = torch.nn.functional.normalize(features.mean(dim=0), dim=0)
        means = [*means[:1], mean]
        colors = [*colors[:1], histogram(clip)]
        dynamic = is_dynamic(clip, back_end.flow, fps=fps)
        series["consistency"].append(sequence_score(features))
        series["smoothness"].append(smoothness(clip, back_end.flow))
        series["dynamic"].append(None if dynamic is None else float(dynamic))
        series["flicker"].append(flicker(clip))
        series["chroma_noise"].append(chroma_noise(clip))
        series["colorfulness"].append(colorfulness(clip))
        series["to_first"].append(float(means[0] @ mean))
    scores.clips, scores.per_clip = len(firsts), series
    if not firsts:
        return scores
    scores.consistency_within = mean_of(series["consistency"])
    scores.consistency_across = sequence_score(torch.stack(firsts))
    scores.motion_smoothness = mean_of(series["smoothness"])
    scores.dynamic_degree = mean_of(series["dynamic"])
    scores.temporal_flickering = mean_of(series["flicker"])
    if scores.clips > 1:
        scores.first_to_last = series["to_first"][-1]
        scores.similarity_slope = slope(series["to_first"], step=length / fps / 60)
        scores.chroma_noise_growth = growth(series["chroma_noise"])
        scores.colorfulness_growth = growth(series["colorfulness"])
        scores.histogram_overlap = overlap(colors[0], colors[-1])
    if scores.clips >= 4:
        quarters = [
            series["smoothness"][place * scores.clips // 4 : (place + 1) * scores.clips // 4] for place in range(4)
        ]
        scores.smoothness_by_quarter = [value for part in quarters if (value := mean_of(part)) is not None]
    return scores


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def growth(values: list[float | None]) -> float | None:
    """The last value minus the first."""
    first, last = values[0], values[-1]
    return None if first is None or last is None else last - first


def slope(values: list[float | None], *, step: float) -> float | None:
    """Least-squares slope of values that are ``step`` apart."""
    y = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if len(y) < 2:
        return None
    x = step * torch.arange(len(y), dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())
