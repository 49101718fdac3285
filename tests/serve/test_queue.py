"""Jobs on disk: what was accepted is there after any end of the server, in the same order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llrag_cli import LlragError, Pipeline, RunFolder, make_video
from llrag_cli.presets import load_config
from llrag_cli.serve.extension import extended
from llrag_cli.serve.folders import only_server
from llrag_cli.serve.jobs import FILE, Job, new_id, read_job
from llrag_cli.serve.objects import status_of, video_object
from llrag_cli.serve.problems import ApiError
from llrag_cli.serve.queue import Queue
from llrag_cli.serve.settings import Limits
from serve.serving import MODEL, OTHER, PROMPT


def job(**changes: object) -> Job:
    fields = {"id": new_id(), "number": 0, "created_at": 1.0, "config": load_config(MODEL), "seed": 1}
    return Job.model_validate({**fields, "prompt": PROMPT, "seconds": 2.0, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of four blocks that a command has made."""
    folder = RunFolder(tmp_path_factory.mktemp("made") / "by-hand")
    make_video(Pipeline.load(MODEL, device="cpu"), PROMPT, folder, seconds=5)
    return folder


@pytest.fixture
def runs(tmp_path: Path, made: RunFolder) -> Path:
    shutil.copytree(made.path, tmp_path / "by-hand")
    return tmp_path


def test_what_was_accepted_is_there_for_the_next_server(tmp_path: Path) -> None:
    queue = Queue(tmp_path, Limits())
    first, second, third = (video.id for video in queue.add([job(), job(), job()]))
    running = queue.take()
    assert isinstance(running, list) and [video.id for video in running] == [first]
    queue.cancel(queue.get(second))
    queue.pause(queue.get(third))
    again = Queue(tmp_path, Limits())
    assert [video.id for video in again.waiting()] == [first]  # as if it had not been begun
    assert [status_of(again.get(each)) for each in (first, second, third)] == ["queued", "cancelled", "queued"]
    again.resume(again.get(third))
    again.resume(again.get(second))
    assert [video.id for video in again.waiting()] == [first, third, second]  # a pause keeps the place
    assert again.add([job()])[0].job.number == 4  # type: ignore[union-attr]


def test_what_was_not_accepted_is_swept_up(tmp_path: Path) -> None:
    half, removed, foreign = tmp_path / new_id(), tmp_path / ".removed-video_1", tmp_path / "notes"
    for folder in (half, removed, foreign):
        folder.mkdir()
        (folder / "input.png").write_bytes(b"x")
    assert Queue(tmp_path, Limits()).videos() == []
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_reader_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / new_id()).mkdir()
    queue = Queue(tmp_path, Limits(), read_only=True)
    assert len([*tmp_path.iterdir()]) == 1
    with pytest.raises(ApiError, match="this server shows videos, and generates none"):
        queue.add([job()])
    assert Queue(tmp_path / "nowhere", Limits(), read_only=True).videos() == []


def test_a_damaged_job_is_no_end_of_the_server(tmp_path: Path) -> None:
    queue = Queue(tmp_path, Limits())
    (video,) = queue.add([job()])
    (video.folder / FILE).write_text("{")
    with pytest.raises(LlragError, match="is damaged"):
        read_job(video.folder)
    again = Queue(tmp_path, Limits())
    assert status_of(again.get(video.id)) == "failed" and again.waiting() == []
    assert video_object(again, again.get(video.id))["error"]["message"]


def test_a_job_that_was_copied_here_is_not_run(tmp_path: Path) -> None:
    queue = Queue(tmp_path / "one", Limits())
    (video,) = queue.add([job()])
    shutil.copytree(video.folder, tmp_path / "two/elsewhere")
    again = Queue(tmp_path / "two", Limits())
    assert again.waiting() == [] and [status_of(each) for each in again.videos()] == ["failed"]


def test_runs_of_others_are_in_the_library_and_can_be_extended(runs: Path) -> None:
    queue = Queue(runs, Limits())
    (video,) = queue.videos()
    shown = video_object(queue, queue.get(video.id))
    assert (shown["status"], shown["seconds"], shown["llrag"]["run"]) == ("completed", "5.625", "by-hand")
    assert video.id.startswith("run_") and not (runs / "by-hand" / FILE).exists()
    queue.extend(video, seconds=2, prompt=OTHER, cut=True)
    record = RunFolder(runs / "by-hand").read_record()
    assert [(shot.start, shot.stop, shot.kind) for shot in record.timeline.shots] == [(0, 4, "start"), (4, 6, "cut")]
    assert (record.status, record.video_crc32) == ("interrupted", None)
    again = Queue(runs, Limits())
    assert [each.id for each in again.waiting()] == [video.id]
    with pytest.raises(ApiError, match="not made by this server"):
        again.remove(again.get(video.id))


def test_of_a_cancelled_video_only_what_is_there_is_extended(made: RunFolder) -> None:
    record = made.read_record()
    longer = extended(record, 2, seconds=3, prompt=None, cut=False)
    assert [(shot.start, shot.stop) for shot in longer.timeline.shots] == [(0, 4)]
    assert longer.seconds == pytest.approx(2.625 + 3)
    switched = extended(record, 2, seconds=3, prompt=OTHER, cut=False)
    assert [(shot.stop, shot.kind) for shot in switched.timeline.shots] == [(2, "start"), (4, "switch")]
    assert switched.lasting(switched.seconds) == switched  # resuming it adds nothing


def test_videos_that_another_one_needs_are_not_removed(tmp_path: Path) -> None:
    from llrag_cli.scenes.schema import Scene

    queue = Queue(tmp_path, Limits())
    (video,) = queue.add([job()])
    scene = {"references": {"a": {"path": video.folder}}, "shots": [{"prompt": PROMPT, "seconds": 2.0}]}
    (user,) = queue.add([job(prompt=None, scene=Scene.model_validate(scene))])
    queue.cancel(video)
    with pytest.raises(ApiError, match=f"`{user.id}` still uses this video"):
        queue.remove(video)
    queue.remove(user)
    queue.remove(video)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_two_servers_never_share_a_folder(tmp_path: Path) -> None:
    with only_server(tmp_path), pytest.raises(LlragError, match="another server is writing"), only_server(tmp_path):
        pass
    with only_server(tmp_path):
        pass


def test_a_job_holds_what_it_takes_to_generate_it(tmp_path: Path) -> None:
    queue = Queue(tmp_path, Limits())
    (video,) = queue.add([job()])
    content = json.loads((video.folder / FILE).read_text())
    assert content["config"]["backbone"]["fps"] == 8 and content["prompt"] == PROMPT and content["seed"] == 1
    assert read_job(video.folder) == video.job
