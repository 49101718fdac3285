"""Retrieval accuracy of keys, measured as the engine uses them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llrag_cli.evaluation.encoder.ranking import (
    effective_rank,
    recall_at,
    reciprocal_rank,
    share_near,
    similarity_by_lag,
)
from llrag_cli.evaluation.statistics import interval
from llrag_cli.memory.candidates import cosine_similarities
from llrag_cli.memory.context import retrievable

LAGS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)


@dataclass(frozen=True)
class Geometry:
    """The memory in which keys are evaluated, in latent frames; as in the released presets."""

    block: int = 3
    window: int = 12
    sink: int = 1
    guard: int = 5
    count: int = 6


@dataclass(frozen=True)
class VideoQuality:
    """The part of one video; accuracies are None if it has no query with an answer."""

    similarity: dict[int, float]
    near_guard: float
    blocks: int  # that retrieve
    queries: int = 0
    recall: float | None = None
    unguarded_recall: float | None = None
    reciprocal_rank: float | None = None


@dataclass(frozen=True)
class Quality:
    """Means over videos, and over queries that have an answer; without labels, accuracies are None."""

    similarity: dict[int, float]  # mean cosine of keys by how many frames they are apart
    effective_rank: float
    near_guard: float  # share of retrieved frames within 8 frames of the newest candidate
    recall: float | None = None  # answers among the retrieved frames, as a share of those that could be there
    recall_interval: tuple[float, float] | None = None  # 95 %, bootstrap over videos
    unguarded_recall: float | None = None  # the same with every past frame a candidate; neighbours are no answers
    reciprocal_rank: float | None = None
    queries: int = 0
    videos: tuple[VideoQuality, ...] = ()


def quality(keys: Sequence[Tensor], geometry: Geometry, labels: Sequence[Tensor] | None = None) -> Quality:
    """Evaluate keys [F, D] of videos, given the object that each frame shows: labels [F], -1 for none.

    As in a rollout, the query of a block is the key of the frame before it, and frames in the window or guarded are
    no candidates. Answers are candidates that show the object of the query from an earlier time it was in view.
    """
    near: list[float] = []
    near_videos: list[int] = []
    scores: list[tuple[float, float, float]] = []
    videos: list[int] = []  # which video each score is of
    for number, video in enumerate(keys):
        units = F.normalize(video.float(), dim=-1)
        shows = None if labels is None else labels[number]
        view = None if shows is None else times_in_view(shows)
        for start in range(0, len(units), geometry.block):
            candidates = retrievable(start=start, window=geometry.window, sink=geometry.sink, guard=geometry.guard)
            if len(candidates) < 2 * geometry.count:
                continue
            cosines = cosine_similarities(units[None, start - 1], units[None, : start - 1])[0]
            everything = cosines.argsort(descending=True)
            order = everything[(everything >= candidates.start) & (everything < candidates.stop)]
            near.append(share_near(order[: geometry.count].tolist(), candidates[-1]))
            near_videos.append(number)
            if shows is None or view is None or shows[start - 1] < 0:
                continue
            answer = (shows == shows[start - 1]) & (view != view[start - 1])
            answer[candidates.stop :] = False
            answer[: candidates.start] = False
            if answer.any():
                guarded, free = answer[order][None], answer[everything][None]
                videos.append(number)
                scores.append(
                    (
                        float(recall_at(guarded, geometry.count)),
                        float(recall_at(free, geometry.count)),
                        float(reciprocal_rank(guarded)),
                    )
                )
    curves = [similarity_by_lag(video, LAGS) for video in keys]
    among = interval([score[0] for score in scores], clusters=videos) if scores else None
    recall, free_recall, rank = _means(scores)
    parts = []
    for number, curve in enumerate(curves):
        own = [score for score, video in zip(scores, videos, strict=True) if video == number]
        spans = [share for share, video in zip(near, near_videos, strict=True) if video == number]
        parts.append(VideoQuality(_known(curve), _mean(spans), len(spans), len(own), *_means(own)))
    return Quality(
        similarity=_known(torch.stack(curves).nanmean(0)),
        effective_rank=effective_rank(torch.cat(list(keys))),
        near_guard=_mean(near),
        recall=recall,
        recall_interval=None if among is None else among[1:],
        unguarded_recall=free_recall,
        reciprocal_rank=rank,
        queries=len(scores),
        videos=tuple(parts),
    )


def _known(curve: Tensor) -> dict[int, float]:
    """Mean cosines by lag, without lags that are longer than the video."""
    return {lag: value for lag, value in zip(LAGS, curve.tolist(), strict=True) if not math.isnan(value)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _means(scores: Sequence[tuple[float, float, float]]) -> tuple[float | None, float | None, float | None]:
    """Means of recall, recall without a guard, and reciprocal rank."""
    if not scores:
        return None, None, None
    recall, free_recall, rank = map(_mean, zip(*scores, strict=True))
    return recall, free_recall, rank


def times_in_view(shows: Tensor) -> Tensor:
    """The number of the stretch of equal labels that each frame belongs to, [F], from labels [F]."""
    return torch.cat((torch.zeros(1, dtype=torch.long), (shows[1:] != shows[:-1]).long().cumsum(0)))
