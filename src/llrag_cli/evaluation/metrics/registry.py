"""Every metric in one place. A new metric is one entry of ``METRICS``: scores, tables, files and reports follow.

Most metrics are computed from a series, a number for each clip of two seconds; several may share one series.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from llrag_cli.evaluation.metrics.consistency import fused, sequence_score, step_score
from llrag_cli.evaluation.metrics.inputs import Backend, Clip, Video
from llrag_cli.evaluation.metrics.motion import is_dynamic, smoothness
from llrag_cli.evaluation.metrics.pixels import chroma_noise, colorfulness, flicker, overlap
from llrag_cli.world.consistency import Consistency

Values = list["float | None"]
Group = Literal["drift", "objects", "VBench"]
GROUPS: tuple[Group, ...] = get_args(Group)  # in the order of a verdict


@dataclass(frozen=True)
class Series:
    """A number for each clip; None where the clip is too short for it."""

    name: str
    measure: Callable[[Clip], float | None]
    plot: str = ""  # title of its plot over time in the report; empty: not drawn


@dataclass(frozen=True)
class Metric:
    """One number of a video, how it is computed and how it is read."""

    name: str
    heading: str  # in reports
    short: str  # in tables with one column a metric
    unit: str
    better: Literal["higher", "lower", "neither"]
    compute: Callable[[Video], float | None]
    series: Series | None = None  # what ``compute`` reads of ``Video.per_clip``
    ranked: tuple[str, ...] = ()  # backends for which memories are ranked by it
    unavailable: Mapping[str, str] = field(default_factory=dict)  # backends that cannot compute it, and why
    drift: bool = False  # memories are ranked by it for drift, with any backend
    sprites: bool = False  # only of videos of the sprite world, which the embedded model makes

    @property
    def group(self) -> Group:
        """What it tells of a video: whether it drifts, whether its objects are kept, or a figure of VBench."""
        return "objects" if self.sprites else "drift" if self.drift else "VBench"


def of_series(
    combine: Callable[[Values], float | None], series: Series
) -> tuple[Callable[[Video], float | None], Series]:
    """``compute`` and ``series`` of a metric that combines the numbers of a series into one."""
    return (lambda video: combine(video.per_clip[series.name])), series


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def last_of(values: Values) -> float | None:
    """The last value; None without an earlier one to compare it with."""
    return values[-1] if len(values) > 1 else None


def growth(values: Values) -> float | None:
    """The last value minus the first."""
    if len(values) < 2 or values[0] is None or values[-1] is None:
        return None
    return values[-1] - values[0]


def slope(values: Values, *, step: float) -> float | None:
    """Least-squares slope of values that are ``step`` apart."""
    y = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if len(y) < 2:
        return None
    x = step * torch.arange(len(y), dtype=torch.float64)
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / x.square().sum())


def _across(clip: Clip) -> float | None:
    if clip.previous is None:
        return None
    return step_score(clip.digest.first, before=clip.previous.first, first=clip.opening.first)


def _dynamic(clip: Clip) -> float | None:
    dynamic = None if clip.backend.flow is None else is_dynamic(clip.frames, clip.backend.flow, fps=clip.fps)
    return None if dynamic is None else float(dynamic)


def _smoothness(clip: Clip) -> float | None:
    return None if clip.backend.flow is None else smoothness(clip.frames, clip.backend.flow)


def _background(clip: Clip) -> float | None:
    return None if clip.backend.background is None else sequence_score(clip.backend.background(clip.frames))


def _aesthetic(clip: Clip) -> float | None:
    return None if clip.backend.aesthetic is None else float(clip.backend.aesthetic(clip.frames).mean())


def _mapped(video: Video) -> float | None:
    across, table = video.metrics["consistency_across"], video.backend.mapping
    return None if across is None or table is None else table(across)


def _subject(video: Video) -> float | None:
    return fused(video.metrics["consistency_within"], video.metrics["consistency_mapped"])


def _slope(video: Video) -> float | None:
    return slope(video.per_clip[TO_FIRST.name], step=video.clip_seconds / 60)


def _sprite(read: Callable[[Consistency], float | None]) -> Callable[[Video], float | None]:
    return lambda video: None if video.sprites is None else read(video.sprites)


CONSISTENCY = Series("consistency", lambda clip: sequence_score(clip.features))
ACROSS = Series("across", _across)
BACKGROUND = Series("background", _background)
AESTHETIC = Series("aesthetic", _aesthetic)
TO_FIRST = Series(
    "to_first",
    lambda clip: float(clip.opening.mean @ clip.digest.mean),
    plot="Similarity of each clip to the first (cosine of features)",
)
CHROMA_NOISE = Series("chroma_noise", lambda clip: chroma_noise(clip.frames), plot="Chroma noise (0 to 255)")
SMOOTHNESS = Series("smoothness", _smoothness, plot="Motion smoothness")
DYNAMIC = Series("dynamic", _dynamic)
FLICKER = Series("flicker", lambda clip: flicker(clip.frames))
COLORFULNESS = Series("colorfulness", lambda clip: colorfulness(clip.frames))
HISTOGRAM = Series("histogram", lambda clip: overlap(clip.opening.histogram, clip.digest.histogram))

NEEDS_DINO = "needs DINO and DINOv2; `consistency_*` compare whole frames by EfficientNet-lite0 instead"
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric(
            "consistency_within",
            "consistency within clips",
            "within",
            "0 to 1",
            "higher",
            *of_series(mean_of, CONSISTENCY),
            ranked=("offline",),
        ),
        Metric(
            "consistency_across",
            "consistency across clips",
            "across",
            "0 to 1",
            "higher",
            *of_series(mean_of, ACROSS),
            ranked=("offline",),
        ),
        Metric(
            "consistency_mapped",
            "across clips, mapped",
            "mapped",
            "0 to 1",
            "higher",
            _mapped,
            unavailable={"offline": "its table is made for DINO and DINOv2"},
        ),
        Metric(
            "subject_consistency",
            "subject consistency",
            "subject",
            "0 to 1",
            "higher",
            _subject,
            ranked=("official",),
            unavailable={"offline": NEEDS_DINO},
        ),
        Metric(
            "background_within",
            "background within clips",
            "background",
            "0 to 1",
            "higher",
            *of_series(mean_of, BACKGROUND),
            ranked=("official",),
            unavailable={"offline": "needs CLIP"},
        ),
        Metric(
            "motion_smoothness",
            "motion smoothness",
            "smooth",
            "0 to 1",
            "higher",
            *of_series(mean_of, SMOOTHNESS),
            ranked=("offline",),
            unavailable={"official": "needs AMT-S, which is CC BY-NC and part of no library"},
        ),
        Metric(
            "temporal_flickering",
            "temporal flickering",
            "flicker",
            "0 to 1",
            "higher",
            *of_series(mean_of, FLICKER),
            ranked=("offline", "official"),
        ),
        Metric(
            "aesthetic_quality",
            "aesthetic quality",
            "aesthetic",
            "about 0 to 1",
            "higher",
            *of_series(mean_of, AESTHETIC),
            ranked=("official",),
            unavailable={"offline": "needs CLIP and the LAION head"},
        ),
        Metric(
            "dynamic_degree",
            "dynamic degree",
            "dynamic",
            "share of clips",
            "neither",
            *of_series(mean_of, DYNAMIC),
        ),
        Metric(
            "first_to_last",
            "similarity of first and last clip",
            "first-last",
            "cosine",
            "higher",
            *of_series(last_of, TO_FIRST),
            drift=True,
        ),
        Metric(
            "similarity_slope",
            "slope of similarity to the first clip",
            "slope/min",
            "cosine per minute",
            "higher",
            _slope,
            TO_FIRST,
            drift=True,
        ),
        Metric(
            "chroma_noise_growth",
            "growth of chroma noise",
            "chroma +",
            "0 to 255",
            "lower",
            *of_series(growth, CHROMA_NOISE),
            drift=True,
        ),
        Metric(
            "colorfulness_growth",
            "growth of colourfulness",
            "colour +",
            "0 to 255",
            "neither",
            *of_series(growth, COLORFULNESS),
        ),
        Metric(
            "histogram_overlap",
            "colour histogram, first and last clip",
            "histogram",
            "0 to 1",
            "higher",
            *of_series(last_of, HISTOGRAM),
            drift=True,
        ),
        Metric(
            "sprite_color",
            "sprites: colours kept",
            "colours",
            "share of objects",
            "higher",
            _sprite(lambda sprites: sprites.color),
            sprites=True,
        ),
        Metric(
            "sprite_identity",
            "sprites: objects kept",
            "objects",
            "share of objects",
            "higher",
            _sprite(lambda sprites: sprites.identity),
            sprites=True,
        ),
        Metric(
            "sprite_returns",
            "sprites: correct returns",
            "returns",
            "share of returns",
            "higher",
            _sprite(lambda sprites: sprites.returns),
            sprites=True,
        ),
        Metric(
            "sprite_tint",
            "sprites: drift of the wall",
            "wall",
            "RGB distance, 0 to 1",
            "lower",
            _sprite(lambda sprites: sprites.tint),
            sprites=True,
        ),
    )
}
NOT_MEASURED = (  # metrics of VBench-Long that no backend computes
    "No backend computes imaging quality (MUSIQ is in PyTorch only in pyiqa, for non-commercial use) or background "
    "consistency across clips (DreamSim's package needs torchvision, timm and open_clip and manages its own models)."
)


def metrics_of(backend: Backend, *, sprites: bool) -> list[Metric]:
    """The metrics that a backend computes; ``sprites``: of a video of the sprite world."""
    return [
        metric
        for metric in METRICS.values()
        if not (metric.sprites and not sprites) and metric.name not in unavailable(backend)
    ]


def unavailable(backend: Backend) -> dict[str, str]:
    """Metrics that this backend cannot compute but another one can, and why."""
    reasons = {
        metric.name: metric.unavailable[backend.kind]
        for metric in METRICS.values()
        if backend.kind in metric.unavailable
    }
    return {**reasons, **backend.missing}


def ranked_metrics(kind: str) -> list[str]:
    """Names of the metrics that memories are ranked by with a kind of backend."""
    return [metric.name for metric in METRICS.values() if kind in metric.ranked]


def drift_metrics() -> list[str]:
    """Names of the metrics that memories are ranked by for drift: on real footage they order videos as the eye does."""
    return [metric.name for metric in METRICS.values() if metric.drift]


def about(backend: Backend) -> dict[str, Any]:
    """What JSON results say of a backend."""
    return {
        "backend": backend.name,
        "licences": dict(backend.licences),
        "unavailable": unavailable(backend),
        "not_measured": NOT_MEASURED,
    }
