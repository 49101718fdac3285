"""What blocks could retrieve, replayed from a timeline: by hand, for any timeline, and as the engine has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llrag_cli import Pipeline
from llrag_cli.engine import rollout
from llrag_cli.memory.context import Stretch, candidate_frames
from llrag_cli.memory.strategies import Nearest
from llrag_cli.presets import load_config
from llrag_cli.scenes.replay import Replay, stretches
from llrag_cli.scenes.timeline import ReferenceSpan, ShotSpan, Timeline

MEMORY = Nearest(window=6, sink=1, retrieved=2, guard=1)


def span(name: str, start: int, stop: int, kind: str = "cut", **changes: Any) -> ShotSpan:
    content = {"prompt": f"shot {name}", "remember": "all", "sink": name, **changes}
    return ShotSpan.model_validate({"name": name, "start": start, "stop": stop, "kind": kind, **content})


def reference(name: str, latent_frames: int, *, pinned: bool = False) -> ReferenceSpan:
    return ReferenceSpan(name=name, path=Path(f"{name}.png"), latent_frames=latent_frames, pinned=pinned)


TIMELINE = Timeline(
    frames_per_block=3,
    fps=8,
    references=(reference("pic", 1), reference("clip", 2)),
    shots=(
        span("a", 0, 5, "start"),
        span("b", 5, 7, "switch", remember="none", sink="a"),
        span("c", 7, 10, remember=("a", "pic"), sink="a"),
        span("d", 10, 14, remember="none"),
    ),
)


@pytest.mark.parametrize(
    ("block", "candidates"),
    [
        (0, [-3, -2, -1]),
        (3, [-3, -2, -1, 1, 2]),  # window 3-8 less the block's room; 9 - 6 evicted, less the guard
        (4, [-3, -2, -1, 1, 2, 3, 4, 5]),
        (5, []),  # a switch that remembers nothing: all that is evicted is of `a`
        (6, []),
        (7, [-3, *range(1, 15)]),  # a cut: the window is empty, and frame 0 is the sink that it kept
        (9, [-3, *range(1, 15)]),
        (12, []),
        (13, [31, 32]),  # 30 is the sink of `d`
    ],
)
def test_candidates_of_a_known_timeline(block: int, candidates: list[int]) -> None:
    assert [*Replay(MEMORY, TIMELINE).candidates(block)] == candidates


def test_stretches_begin_at_cuts_and_keep_the_sink() -> None:
    assert stretches(MEMORY, TIMELINE) == (Stretch(), Stretch(), Stretch(21, 1, 0), Stretch(30, 0, 30))
    replay = Replay(MEMORY, TIMELINE)
    assert replay.window(4) == range(6, 12) and replay.window(7) == range(21, 21)
    assert replay.sink(8) == range(0, 1) and replay.sink(13) == range(30, 31)
    a, b, c, d = TIMELINE.shots
    assert replay.forgotten(a) == {}
    assert replay.forgotten(b) == {"pic": range(-3, -2), "clip": range(-2, 0), "a": range(15)}
    assert [*replay.forgotten(c)] == ["clip", "b"]
    assert [*replay.forgotten(d)] == ["pic", "clip", "a", "b", "c"]


def test_frames_near_the_guard_are_of_the_stretch() -> None:
    replay = Replay(MEMORY, TIMELINE)
    assert [replay.near_guard(4, frame) for frame in (-1, 1, 5, 6)] == [False, True, True, False]
    assert not replay.near_guard(7, 14)  # one frame before the cut, but no window reaches over a cut
    assert replay.near_guard(13, 30) and replay.near_guard(13, 31)  # the first frame of the stretch too


def test_pinned_references_are_no_candidates() -> None:
    pinned = (reference("far", 2), reference("near", 1, pinned=True))
    timeline = TIMELINE.model_copy(update={"references": pinned, "shots": (span("a", 0, 9, "start"),)})
    replay = Replay(MEMORY, timeline)
    assert replay.candidates(0) == [-3, -2]
    assert replay.places(timeline.shots[0]) == 1
    full = Replay(MEMORY.model_copy(update={"retrieved": 1}), timeline)
    assert full.candidates(8) == ()  # no place is left


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Any shots and references; sinks as ``plan_timeline`` has them, or otherwise."""
    references = tuple(
        reference(f"r{n}", draw(st.integers(1, 3)), pinned=n == 2) for n in range(draw(st.integers(0, 3)))
    )
    shots: list[ShotSpan] = []
    start = 0
    for number in range(draw(st.integers(1, 5))):
        stop = start + draw(st.integers(1, 6))
        kind = draw(st.sampled_from(["switch", "cut"])) if number else "start"
        names = [*(shot.name for shot in shots), *(each.name for each in references)]
        remember = draw(st.sampled_from(["all", "none", tuple(names[::2]) or "none", tuple(names[1::2]) or "none"]))
        keeps = number > 0 and (kind == "switch" or draw(st.booleans()))
        shots.append(
            span(
                f"s{number}",
                start,
                stop,
                kind,
                remember=remember,
                sink=shots[-1].sink if keeps else f"s{number}",
                recache=draw(st.sampled_from([None, "keep", "renew", "none"])) if kind == "switch" else None,
            )
        )
        start = stop
    return Timeline(frames_per_block=draw(st.sampled_from([1, 3])), fps=8, references=references, shots=tuple(shots))


@given(timelines(), st.integers(6, 12), st.integers(0, 1), st.integers(0, 3))
def test_a_frame_is_a_candidate_or_it_is_known_why_not(timeline: Timeline, window: int, sink: int, guard: int) -> None:
    """The map draws the reasons: what is in none of them must be a candidate."""
    memory = Nearest(window=window, sink=sink, retrieved=4, guard=guard)
    replay = Replay(memory, timeline)
    for block in range(timeline.blocks):
        shot = timeline.shot_at(block)
        past = range(-timeline.reference_count, block * timeline.frames_per_block)
        reasons = [replay.window(block), replay.sink(block), range(-timeline.pinned_frames, 0)]
        reasons += replay.forgotten(shot).values()
        left = [frame for frame in past if not any(frame in reason for reason in reasons)]
        assert [*replay.candidates(block)] == left


def test_the_engine_has_the_same_candidates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "teal").save(tmp_path / "pic.png")
    seen: dict[int, list[int]] = {}

    def watched(*arguments: Any, start: int, **options: Any) -> Any:
        found = candidate_frames(*arguments, start=start, **options)
        seen[start // 3] = [*found]
        return found

    monkeypatch.setattr(rollout, "candidate_frames", watched)
    settings = [
        "memory.window=8",
        "memory.retrieved=2",
        "memory.guard=1",
        "sampler.steps=[1000]",
        "memory.archive=device",
    ]
    pipeline = Pipeline.load(load_config("tiny", settings=settings), device="cpu")
    references = tuple(
        ReferenceSpan(name=name, path=tmp_path / "pic.png", prompt="teal", latent_frames=1, pinned=name == "pin")
        for name in ("pic", "pin")
    )
    shots = (
        span("a", 0, 5, "start"),
        span("b", 5, 8, "switch", sink="a", recache="renew"),
        span("c", 8, 12, remember=("a", "pin"), sink="a"),
        span("d", 12, 16, "switch", remember=("b", "pic"), sink="a"),
        span("e", 16, 22, remember="none"),
    )
    timeline = Timeline(frames_per_block=3, fps=8, references=references, shots=shots)
    for _ in pipeline.start(timeline):
        pass
    replay = Replay(pipeline.config.memory, timeline)  # type: ignore[arg-type]
    assert seen == {block: [*replay.candidates(block)] for block in range(22)}
    assert seen[15] and seen[21]
