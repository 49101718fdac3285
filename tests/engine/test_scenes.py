"""Scenes of the embedded model: sessions, switches while they run, runs, takes, and interruptions."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from llrag_cli import Pipeline, load_config
from llrag_cli.engine.rollout import Block
from llrag_cli.engine.session import Session
from llrag_cli.errors import UsageError
from llrag_cli.runs.folder import RunFolder, read_run
from llrag_cli.runs.maker import make_takes, make_video, resume_video
from llrag_cli.runs.progress import Progress
from llrag_cli.runs.video import VideoWriter, read_video
from llrag_cli.scenes.schema import Scene

RED, WHITE = "a red circle bounces around in front of a blue wall", "a white cross orbits in front of a gray wall"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(load_config("tiny", settings=["sampler.steps=[1000, 500]", "video.upscale=1"]))


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of a square that moves over a gradient, at 10 frames a second."""
    path = tmp_path_factory.mktemp("footage") / "clip.mp4"
    writer = VideoWriter(path, fps=10)
    for number in range(30):
        frame = torch.linspace(-1, 1, 80).expand(1, 3, 80, 80).clone()
        frame[:, 0, 20:40, number : number + 20] = 1
        writer.write(frame)
    writer.close()
    return path


@pytest.fixture(scope="module")
def reference(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = RunFolder(tmp_path_factory.mktemp("reference") / "run")
    make_video(pipeline, WHITE, folder, seconds=2)
    return folder.path


@pytest.fixture(scope="module")
def scene(footage: Path, reference: Path) -> Scene:
    """Own footage, a switch, a cut, and a reference."""
    shots = [
        {"name": "arrival", "prompt": RED, "seconds": 3, "video": str(footage)},
        {"prompt": "a green square bounces around in front of a pink wall", "seconds": 3},
        {"name": "away", "prompt": WHITE, "seconds": 3, "cut": True, "remember": ["house"], "seed": 5},
        {"prompt": "a shape in front of a wall", "seconds": 3, "cut": True, "remember": ["arrival", "house"]},
    ]
    return Scene.model_validate({"title": "there", "references": {"house": str(reference)}, "shots": shots})


@pytest.fixture(scope="module")
def whole(pipeline: Pipeline, scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    make_video(pipeline, scene, folder, seed=3)
    return folder


def assert_same(folder: RunFolder, whole: RunFolder) -> None:
    for name in ("latents", "memory", "video"):
        assert getattr(folder, name).read_bytes() == getattr(whole, name).read_bytes(), name


def test_a_scene_becomes_a_run(whole: RunFolder, scene: Scene, reference: Path) -> None:
    record, blocks = read_run(whole)
    timeline = record.timeline
    assert [(shot.name, shot.kind) for shot in timeline.shots] == [
        ("arrival", "start"),
        ("shot-2", "switch"),
        ("away", "cut"),
        ("shot-4", "cut"),
    ]
    assert record.title == "there" and timeline.shots[0].given_blocks == 2
    assert len(read_video(whole.video)) == record.video_frames == timeline.video_frames == record.video_frames_written
    for block in blocks:
        names = {timeline.name_of(frame) for frame in block.retrieved}
        assert block.sources == tuple(timeline.name_of(frame) for frame in block.retrieved)
        assert names <= {*timeline.eligible(block.frame // 3)}
    assert blocks[timeline.shots[3].start].retrieved and blocks[timeline.shots[2].start].sources[0] == "house"


def test_own_footage_opens_the_video(whole: RunFolder, footage: Path) -> None:
    opened, clip = read_video(whole.video), read_video(footage)
    scale = opened.shape[-1] // 64
    small = torch.nn.functional.avg_pool2d(opened[:21], scale)
    shown = torch.nn.functional.interpolate(clip[[round(10 * n / 8) for n in range(21)]], size=(64, 64), mode="area")
    assert (small - shown).abs().mean() < 0.12  # what the embedded VAE makes of a picture it was not trained on


def test_nothing_of_a_picture_shows_after_a_cut(pipeline: Pipeline) -> None:
    shots = [{"prompt": RED, "seconds": 1}, {"prompt": WHITE, "seconds": 2, "cut": True, "remember": "none", "seed": 5}]
    cut = list(pipeline.start(Scene.model_validate({"shots": shots}), seed=3))
    alone = list(pipeline.start(WHITE, seconds=2, seed=5))
    frames = torch.cat([block.frames for block in cut[1:]], dim=1)
    assert cut[1].cut and torch.equal(cut[1].latents, alone[0].latents)
    expected = torch.cat([block.frames for block in alone], dim=1)
    assert frames.shape[1] == 12 * (len(cut) - 1)
    count = min(frames.shape[1] - 3, expected.shape[1])
    torch.testing.assert_close(frames[:, 4 : 1 + count], expected[:, 1 : count - 2])


@pytest.mark.parametrize("block", range(8))
def test_a_scene_resumes_to_the_same_files(
    pipeline: Pipeline, scene: Scene, whole: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    folder = RunFolder(tmp_path / "run")
    following = Session.__next__

    def failing(session: Session) -> Block:
        each = following(session)
        if each.index == block:
            raise KeyboardInterrupt
        return each

    with monkeypatch.context() as patched:
        patched.setattr(Session, "__next__", failing)
        with pytest.raises(KeyboardInterrupt):
            make_video(pipeline, scene, folder, seed=3)
    assert folder.read_record().blocks_committed == block
    resume_video(pipeline, folder)
    assert_same(folder, whole)


def test_a_switch_of_a_session_is_a_planned_one(pipeline: Pipeline) -> None:
    shots: list[dict[str, Any]] = [
        {"prompt": RED, "seconds": 3},
        {"prompt": WHITE, "seconds": 3},
        {"prompt": RED, "seconds": 3, "cut": True},
    ]
    planned = pipeline.start(Scene.model_validate({"shots": shots}), seed=2)
    expected = [block.latents for block in planned]
    session = pipeline.start(RED, seconds=9, seed=2)
    with pytest.raises(UsageError, match="there is no block yet"):
        session.switch(WHITE)
    made = []
    for block in session:
        made.append(block.latents)
        for shot in planned.timeline.shots[1:]:
            if shot.start == block.index + 1:
                with pytest.raises(UsageError, match="the prompt is empty"):
                    session.switch(" ")
                session.switch(shot.prompt, cut=shot.kind == "cut")
    assert len(made) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))
    assert session.timeline == planned.timeline
    with pytest.raises(UsageError, match="the last block is finished"):
        session.switch(WHITE)


def test_a_switch_while_a_run_is_made_is_recorded(pipeline: Pipeline, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")

    def between(session: Session) -> None:
        if session._next == 2:
            session.switch(WHITE, cut=True)
            raise_at.append(2)

    raise_at: list[int] = []
    record = make_video(pipeline, RED, folder, seconds=6, between=between)
    assert raise_at and [(shot.start, shot.kind) for shot in record.timeline.shots] == [(0, "start"), (2, "cut")]
    shutil.copytree(folder.path, tmp_path / "cut")
    cut = RunFolder(tmp_path / "cut")
    lines = (cut.path / "commits.jsonl").read_text().splitlines(keepends=True)
    (cut.path / "commits.jsonl").write_text("".join(lines[:3]))
    cut.write_record(record.updated(status="running"))
    resume_video(pipeline, cut)
    assert_same(cut, folder)


def test_takes_are_runs_and_resume_as_a_batch(
    pipeline: Pipeline, scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def folders(name: str) -> list[RunFolder]:
        return [RunFolder(tmp_path / name / f"take-{number}") for number in (1, 2)]

    records = make_takes(pipeline, scene, folders("whole"), seeds=[3, 4])
    assert [record.seed for record in records] == [3, 4]
    following = Session.__next__

    def failing(session: Session) -> Block:
        each = following(session)
        if each.index == 5:
            raise KeyboardInterrupt
        return each

    with monkeypatch.context() as patched:
        patched.setattr(Session, "__next__", failing)
        with pytest.raises(KeyboardInterrupt):
            make_takes(pipeline, scene, folders("parts"), seeds=[3, 4])
    behind = folders("parts")[1]  # as if it was killed between the commits of two takes
    commits = (behind.path / "commits.jsonl").read_text().splitlines(keepends=True)
    (behind.path / "commits.jsonl").write_text("".join(commits[:-1]))
    make_takes(pipeline, scene, folders("parts"), seeds=[3, 4], existing="resume")
    for one, other in zip(folders("parts"), folders("whole"), strict=True):
        assert_same(one, other)


def test_what_an_earlier_process_generated_does_not_count_as_new(pipeline: Pipeline, tmp_path: Path) -> None:
    folder, told = RunFolder(tmp_path / "run"), list[Progress]()
    make_video(pipeline, RED, folder, seconds=4.125, on_progress=told.append)  # blocks of 9, 12 and 12 frames, 8 fps
    assert [each.new_seconds for each in told] == [each.seconds_of_video for each in told] == [1.125, 2.625, 4.125]
    del told[:]
    resume_video(pipeline, folder, seconds=7.125, on_progress=told.append)
    assert [(each.resumed_at, each.done, each.blocks) for each in told] == [(3, done, 5) for done in (1, 2, 3, 4, 5)]
    assert [each.new_seconds for each in told] == [0, 0, 0, 1.5, 3]  # the first three blocks are replayed
    assert [each.seconds_of_video for each in told] == [1.125, 2.625, 4.125, 5.625, 7.125]


def test_a_single_take_is_the_run_of_its_seed(pipeline: Pipeline, scene: Scene, tmp_path: Path) -> None:
    take, run = RunFolder(tmp_path / "take"), RunFolder(tmp_path / "run")
    make_takes(pipeline, scene, [take], seeds=[3])
    started = time.perf_counter()
    record = make_video(pipeline, scene, run, seed=3)
    assert_same(take, run)
    assert 0 < record.seconds_of_work < time.perf_counter() - started


def test_a_run_is_extended_with_a_cut(pipeline: Pipeline, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    make_video(pipeline, RED, folder, seconds=3)
    record = resume_video(pipeline, folder, seconds=6, prompt=WHITE, cut=True)
    assert [(shot.prompt, shot.kind) for shot in record.timeline.shots] == [(RED, "start"), (WHITE, "cut")]
    assert len(read_video(folder.video)) == record.video_frames
