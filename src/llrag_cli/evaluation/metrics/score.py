"""Every figure of one video from one pass over its frames; memory holds one clip, however long the video is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llrag_cli.evaluation.metrics.clips import clip_length, clips_of
from llrag_cli.evaluation.metrics.consistency import MappingTable, fused, sequence_score
from llrag_cli.evaluation.metrics.features import Features, efficientnet_features
from llrag_cli.evaluation.metrics.motion import Flow, dis_flow, is_dynamic, smoothness
from llrag_cli.evaluation.metrics.pixels import chroma_noise, colorfulness, flicker, histogram, overlap

PER_CLIP = (
    "consistency",
    "background",
    "aesthetic",
    "smoothness",
    "dynamic",
    "flicker",
    "chroma_noise",
    "colorfulness",
    "to_first",
)


@dataclass(frozen=True)
class BackEnd:
    """What compares frames and sees motion; scores of different back ends are never compared."""

    name: str
    features: Features  # compared within clips, and over the whole video
    flow: Flow | None
    first_features: Features | None = None  # compared across clips, on their first frames; None: the same
    background: Features | None = None  # compared within clips
    aesthetic: Features | None = None  # frames [T, 3, H, W] to [T], in about 0..1
    mapping: MappingTable | None = None  # made for ``first_features`` and ``features``, and for no others
    ranked: tuple[str, ...] = ()  # figures that methods are ranked by
    licences: Mapping[str, str] = field(default_factory=dict)  # of each model
    unavailable: Mapping[str, str] = field(default_factory=dict)  # figures that stay None, and why

    @property
    def kind(self) -> str:
        """How it is asked for: ``offline`` or ``official``."""
        return self.name.split(":")[0]

    @property
    def about(self) -> dict[str, Any]:
        """What JSON results say of it."""
        return {"back_end": self.name, "licences": dict(self.licences), "unavailable": dict(self.unavailable)}


RANKED_OFFLINE = ("consistency_within", "consistency_across", "motion_smoothness", "temporal_flickering")
NOT_OFFLINE = {
    "consistency_mapped": "the official table is for DINO and DINOv2; `consistency_*` are whole frames of EfficientNet",
    "subject_consistency": "needs DINO and DINOv2; `consistency_*` are whole frames of EfficientNet-lite0 instead",
    "background_within": "needs CLIP",
    "background_across": "needs DreamSim",
    "background_mapped": "needs DreamSim",
    "background_consistency": "needs CLIP and DreamSim",
    "aesthetic_quality": "needs CLIP and the LAION head",
    "imaging_quality": "needs MUSIQ",
}


def offline() -> BackEnd:
    """Models that come with their packages: nothing to download."""
    return BackEnd(
        "offline: EfficientNet-lite0, DIS flow",
        efficientnet_features(),
        dis_flow(),
        ranked=RANKED_OFFLINE,
        licences={"EfficientNet-lite0": "Apache-2.0, ImageNet weights", "OpenCV's DIS flow": "Apache-2.0"},
        unavailable=NOT_OFFLINE,
    )


@dataclass
class Scores:
    """Figures of one video; None where it is too short for one, or the back end has none.

    Lists have one entry a clip.
    """

    frames: int = 0
    clips: int = 0
    consistency_within: float | None = None  # VBench's sequence score inside clips, their mean
    consistency_across: float | None = None  # the same over the first frames of all clips
    consistency_mapped: float | None = None  # across, through VBench-Long's table
    subject_consistency: float | None = None  # the mean of within and mapped
    background_within: float | None = None
    background_across: float | None = None
    background_mapped: float | None = None
    background_consistency: float | None = None
    aesthetic_quality: float | None = None  # mean over frames and clips, in about 0..1
    imaging_quality: float | None = None
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
    series: dict[str, list[float | None]] = {name: [] for name in PER_CLIP}
    flow, background, aesthetic = back_end.flow, back_end.background, back_end.aesthetic
    smooth = None if "motion_smoothness" in back_end.unavailable else flow
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
        series["consistency"].append(sequence_score(features))
        series["background"].append(None if background is None else sequence_score(background(clip)))
        series["aesthetic"].append(None if aesthetic is None else float(aesthetic(clip).mean()))
        series["smoothness"].append(None if smooth is None else smoothness(clip, smooth))
        dynamic = None if flow is None else is_dynamic(clip, flow, fps=fps)
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
    if back_end.mapping is not None and scores.consistency_across is not None:
        scores.consistency_mapped = back_end.mapping(scores.consistency_across)
        scores.subject_consistency = fused(scores.consistency_within, scores.consistency_mapped)
    scores.background_within = mean_of(series["background"])
    scores.aesthetic_quality = mean_of(series["aesthetic"])
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
