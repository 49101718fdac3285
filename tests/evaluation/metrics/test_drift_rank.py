"""The drift rank orders videos as the eye does, also where the figures of VBench do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llrag_cli.evaluation.metrics.backends import offline
from llrag_cli.evaluation.metrics.registry import METRICS, drift_metrics, ranked_metrics
from llrag_cli.evaluation.metrics.score import score
from llrag_cli.evaluation.results import rank

FPS, FRAMES, SIZE = 8, 64, 96  # four clips
GROWING = torch.linspace(0, 1, FRAMES).view(-1, 1, 1, 1)
NOISE = torch.randn(FRAMES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def picture(seed: int) -> Tensor:
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic").clamp(0, 1)[0]


def panned(seed: int = 0, *, speed: int = 0) -> Tensor:
    """A camera that pans over a picture that closes on itself, ``speed`` pixels a frame; 0 stands still."""
    return torch.stack([picture(seed).roll(speed * number, dims=2) for number in range(FRAMES)])


def saturating(video: Tensor, *, by: float) -> Tensor:
    gray = video.mean(1, keepdim=True)
    return (gray + (video - gray) * (1 + by * GROWING)).clamp(0, 1)


def dissolving(video: Tensor) -> Tensor:
    return ((1 - GROWING) * video + GROWING * (0.5 + 0.3 * NOISE)).clamp(0, 1)


def darkening(video: Tensor) -> Tensor:
    return video * (1 - 0.5 * GROWING)


def with_cut(video: Tensor, *, returns: bool) -> Tensor:
    """Another picture from frame 24 on, for 16 frames or to the end."""
    stop = 40 if returns else FRAMES
    return torch.cat((video[:24], panned(5, speed=1)[24:stop], video[stop:]))


VIDEOS: Mapping[str, Callable[[], Tensor]] = {
    "still": panned,
    "still, grain": lambda: (panned() + 0.01 * NOISE).clamp(0, 1),
    "still, saturating": lambda: saturating(panned(), by=1.5),
    "still, fading to gray": lambda: saturating(panned(), by=-1),
    "still, dissolving": lambda: dissolving(panned()),
    "still, darkening": lambda: darkening(panned()),
    "slow": lambda: panned(speed=1),
    "slow, a cut that returns": lambda: with_cut(panned(speed=1), returns=True),
    "slow, a cut that stays": lambda: with_cut(panned(speed=1), returns=False),
    "fast": lambda: panned(speed=7),
    "fast, saturating": lambda: saturating(panned(speed=7), by=1.5),
    "fast, saturating a little": lambda: saturating(panned(speed=7), by=0.3),
    "fast, dissolving": lambda: dissolving(panned(speed=7)),
}
Means = Mapping[str, Mapping[str, float | None]]


@pytest.fixture(scope="module")
def means() -> Means:
    backend = offline()
    return {name: score(iter(video()), fps=FPS, backend=backend).metrics for name, video in VIDEOS.items()}


@pytest.mark.parametrize(
    "order",
    [
        ("still", "still, saturating", "still, dissolving"),
        ("still, grain", "still, darkening"),
        ("still, grain", "still, fading to gray"),
        ("still, grain", "still, saturating", "still, dissolving"),
        ("fast", "fast, saturating a little", "fast, saturating", "fast, dissolving"),
        ("slow, a cut that returns", "slow, a cut that stays"),
        ("fast", "still, saturating", "still, dissolving"),
        ("fast", "still, darkening"),
        ("slow, a cut that returns", "still, saturating"),
    ],
    ids=lambda order: "; ".join(order),
)
def test_a_video_that_drifts_more_ranks_lower(means: Means, order: Sequence[str]) -> None:
    ranks = rank({name: means[name] for name in order}, drift_metrics())
    assert sorted(ranks, key=lambda name: ranks[name]) == list(order)
    assert len({*ranks.values()}) == len(order)


def test_a_cut_that_returns_is_no_drift(means: Means) -> None:
    """The end is compared with the beginning; what lies between counts for the slope alone."""
    there, plain = means["slow, a cut that returns"], means["slow"]
    for name in ("first_to_last", "histogram_overlap", "chroma_noise_growth"):
        assert there[name] == pytest.approx(plain[name])
    assert (there["consistency_across"] or 0) < (plain["consistency_across"] or 0) - 0.05


def test_motion_alone_is_no_drift(means: Means) -> None:
    """A fast camera over a picture that stays is far below a still one in VBench's figures, and near it in drift."""
    for name in drift_metrics():
        assert means["fast"][name] == pytest.approx(means["still"][name], abs=0.6), METRICS[name].heading
    assert (means["fast"]["temporal_flickering"] or 0) < 0.95 < (means["still"]["temporal_flickering"] or 0)


def test_the_figures_of_vbench_prefer_a_still_video_that_drifts(means: Means) -> None:
    pair = {name: means[name] for name in ("fast", "still, saturating")}
    figures = rank(pair, ranked_metrics("offline"))
    assert figures["still, saturating"] < figures["fast"]
