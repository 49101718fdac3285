"""Metrics of videos: recorded vectors, videos whose metrics are known, and that streaming changes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from llrag_cli.evaluation.metrics.backends import offline
from llrag_cli.evaluation.metrics.clips import clip_length, clips_of
from llrag_cli.evaluation.metrics.consistency import sequence_score
from llrag_cli.evaluation.metrics.inputs import Backend
from llrag_cli.evaluation.metrics.motion import dis_flow, smoothness, warped
from llrag_cli.evaluation.metrics.pixels import chroma_noise, colorfulness, histogram, overlap
from llrag_cli.evaluation.metrics.score import Scores, score, score_beginnings

GOLDENS = Path(__file__).parent / "goldens"
CASES = json.loads((GOLDENS / "vbench_long.json").read_text())
FPS = 8


def still(one: Tensor, other: Tensor) -> Tensor:
    return torch.zeros(2, *one.shape[1:])


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["name"])
def test_the_official_metrics(case: dict) -> None:  # type: ignore[type-arg]
    """The scorer of videos, given the recorded features of the frames it hands over."""
    tensors = load_file(GOLDENS / "vbench_long.safetensors")
    frames, inclip, first = (
        tensors[f"{case['name']}.{name}"] for name in ("frames", "inclip_features", "clip_features")
    )
    spans = [tuple(span) for span in case["clips"]]
    within, across = iter(spans), iter(spans)
    backend = Backend(
        "recorded",
        features=lambda clip: inclip[slice(*next(within))],
        flow=still,
        first_features=lambda clip: first[next(across)[0]][None],
    )
    found = score((frame.permute(2, 0, 1) / 255 for frame in frames), fps=case["fps"], backend=backend)
    close = {"abs": CASES["tolerance"]}
    assert found.frames == case["frames"] and found.clips == len(spans)
    assert found.per_clip["consistency"] == pytest.approx(case["inclip_per_clip"], **close)
    assert found.metrics["consistency_within"] == pytest.approx(case["inclip"], **close)
    assert found.per_clip["flicker"] == pytest.approx(case["flicker_per_clip"], **close)
    assert found.metrics["temporal_flickering"] == pytest.approx(case["flicker"], **close)
    if case["clip_to_clip"] is None:
        assert found.metrics["consistency_across"] is None
    else:
        assert found.metrics["consistency_across"] == pytest.approx(case["clip_to_clip"], **close)


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["name"])
def test_clips_are_the_official_ones(case: dict) -> None:  # type: ignore[type-arg]
    numbers = (torch.full((3, 1, 1), float(number)) for number in range(case["frames"]))
    parts = clips_of(numbers, length=clip_length(case["fps"]))
    clips = [(int(part.frames[0, 0]), int(part.frames[-1, 0]) + 1) for part in parts]
    assert clips == [tuple(span) for span in case["clips"]]


def scene(seed: int, size: int = 96) -> Tensor:
    """A picture [3, size, size] of blurred patches, different for each seed."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)[0]


def checks(size: int = 96) -> Tensor:
    """Something else altogether: a red and white board."""
    row = (torch.arange(size) // 12) % 2
    board = (row[None] ^ row[:, None]).float()
    return torch.stack((torch.full_like(board, 0.9), board, board))


def panned(picture: Tensor, frames: int, speed: int = 1) -> Tensor:
    return torch.stack([picture.roll(speed * number, dims=2) for number in range(frames)])


@pytest.fixture(scope="module")
def backend() -> Backend:
    return offline()


def judged(frames: Tensor, backend: Backend) -> Scores:
    return score(iter(frames), fps=FPS, backend=backend)


FRAMES = 8 * FPS  # four clips


def test_a_frozen_video(backend: Backend) -> None:
    found = judged(scene(0).expand(FRAMES, -1, -1, -1), backend)
    for value in (
        found.metrics["consistency_within"],
        found.metrics["consistency_across"],
        found.metrics["first_to_last"],
        found.metrics["temporal_flickering"],
    ):
        assert value == pytest.approx(1, abs=1e-4)
    assert found.metrics["motion_smoothness"] == pytest.approx(1, abs=2e-3)
    assert found.metrics["dynamic_degree"] == 0
    assert found.metrics["chroma_noise_growth"] == pytest.approx(0, abs=1e-4)
    assert found.metrics["histogram_overlap"] == pytest.approx(1)
    assert found.metrics["similarity_slope"] == pytest.approx(0, abs=1e-3)


def test_a_moving_video_is_dynamic_and_smooth(backend: Backend) -> None:
    found = judged(panned(scene(0), FRAMES, speed=4), backend)
    assert found.metrics["dynamic_degree"] == 1
    assert found.metrics["motion_smoothness"] is not None and found.metrics["motion_smoothness"] > 0.95


def test_a_hard_cut_shows_inside_its_clip(backend: Backend) -> None:
    calm = panned(scene(0), FRAMES)
    cut = torch.cat((calm[: FRAMES // 2 + 5], panned(checks(), FRAMES)[FRAMES // 2 + 5 :]))
    plain, found = judged(calm, backend), judged(cut, backend)
    within = found.per_clip["consistency"]
    assert within.index(min(within, key=float)) == 2  # type: ignore[arg-type]
    assert (found.metrics["consistency_within"] or 0) < (plain.metrics["consistency_within"] or 0) - 0.01
    assert (found.metrics["first_to_last"] or 0) < (plain.metrics["first_to_last"] or 0) - 0.1


def test_another_identity_shows_across_clips_only(backend: Backend) -> None:
    """A change between two clips: each clip holds together, the video does not."""
    calm = panned(scene(0), FRAMES)
    switched = torch.cat((calm[: FRAMES // 2], panned(checks(), FRAMES // 2)))
    plain, found = judged(calm, backend), judged(switched, backend)
    assert found.metrics["consistency_within"] == pytest.approx(plain.metrics["consistency_within"], abs=0.03)
    assert (found.metrics["consistency_across"] or 0) < (plain.metrics["consistency_across"] or 0) - 0.1
    assert (found.metrics["histogram_overlap"] or 0) < 0.6 < (plain.metrics["histogram_overlap"] or 0)


def test_growing_chroma_noise_is_chroma_noise(backend: Backend) -> None:
    calm = panned(scene(0), FRAMES)
    noise = torch.randn(FRAMES, 1, 96, 96, generator=torch.Generator().manual_seed(0))
    tint = torch.tensor([0.02, -0.0102, 0.0]).view(1, 3, 1, 1)  # no luma in BT.601
    grown = (calm + tint * noise * torch.linspace(0, 2, FRAMES).view(-1, 1, 1, 1)).clamp(0, 1)
    plain, found = judged(calm, backend), judged(grown, backend)
    assert (found.metrics["chroma_noise_growth"] or 0) > (plain.metrics["chroma_noise_growth"] or 0) + 1
    assert found.metrics["histogram_overlap"] == pytest.approx(plain.metrics["histogram_overlap"], abs=0.1)
    assert found.metrics["dynamic_degree"] == plain.metrics["dynamic_degree"]


def test_too_short_for_a_metric_is_none(backend: Backend) -> None:
    one = judged(scene(0)[None], backend)
    assert (one.frames, one.clips) == (1, 1)
    assert (
        one.metrics["consistency_within"]
        is one.metrics["temporal_flickering"]
        is one.metrics["motion_smoothness"]
        is one.metrics["first_to_last"]
        is None
    )
    nothing = score(iter(()), fps=FPS, backend=backend)
    assert (nothing.frames, nothing.clips, nothing.metrics["consistency_within"]) == (0, 0, None)


def test_only_one_clip_is_held() -> None:
    """However long a video is: frames are asked for one by one, and no more than a clip of them is alive."""
    alive: list[int] = []

    class Frame(torch.Tensor):
        pass

    def frames() -> Iterator[Tensor]:
        for number in range(500):
            alive.append(number)
            yield torch.full((3, 2, 2), float(number))

    seen = 0
    for part in clips_of(frames(), length=16):
        assert len(alive) <= seen + 16
        seen += 16
        assert part.frames.shape == (16, 3, 2, 2)
    assert len(alive) == 500


def test_beginnings_of_a_video_are_scored_in_one_pass_as_each_alone(backend: Backend) -> None:
    """Ends inside the first clip, at the end of a clip, twice inside of one, and past the end of the video."""
    video = list(panned(scene(4), 53, speed=2))
    ends = [7, 32, 40, 40, 53, 80]
    looked = []
    frames = (looked.append(number) or frame for number, frame in enumerate(video))  # type: ignore[func-returns-value]
    found = score_beginnings(frames, ends, fps=FPS, backend=backend, sprites=True)
    assert found == [score(iter(video[:end]), fps=FPS, backend=backend, sprites=True) for end in ends]
    assert looked == [*range(53)]
    short = iter(video)
    score_beginnings(short, [7, 32], fps=FPS, backend=backend)
    assert next(short) is video[32]  # nothing after the longest beginning is read


def test_flow_finds_a_shift_and_warping_undoes_it() -> None:
    picture = scene(3)
    moved = picture.roll(3, dims=2)
    flow = dis_flow()(picture, moved)
    assert flow[0, 20:-20, 20:-20].median() == pytest.approx(3, abs=0.5)
    back = warped(moved, flow)
    assert (back - picture)[:, 20:-20, 20:-20].abs().mean() < 0.02
    jerky = panned(scene(3), 9, speed=2)[[0, 3, 2, 1, 4, 7, 6, 5, 8]]
    even = smoothness(panned(scene(3), 9, speed=2), dis_flow())
    assert even is not None and even > (smoothness(jerky, dis_flow()) or 1)


def test_metrics_of_colour() -> None:
    gray = torch.full((2, 3, 16, 16), 0.5)
    assert colorfulness(gray) == pytest.approx(0)
    halves = gray.clone()
    halves[:, 0, :, :8], halves[:, 2, :, 8:] = 1.0, 1.0
    assert colorfulness(halves) > 60
    assert chroma_noise(gray) == pytest.approx(0, abs=1e-4)
    assert overlap(histogram(gray), histogram(gray)) == pytest.approx(1)
    assert overlap(histogram(gray), histogram(torch.zeros(1, 3, 4, 4))) == 0


def test_a_sequence_of_opposites_scores_nothing() -> None:
    axes = torch.eye(4)
    assert sequence_score(axes) == pytest.approx(0)
    assert sequence_score(axes[:1].expand(5, -1)) == pytest.approx(1)
    assert sequence_score(torch.tensor([[1.0, 0], [-1, 0]])) == 0
    assert sequence_score(axes[:1]) is None
