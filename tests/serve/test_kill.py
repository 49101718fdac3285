"""A server that is killed at any moment: what it had accepted continues, in its order, to the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from llrag_cli import RunFolder
from llrag_cli.serve.jobs import read_job
from serve.serving import OTHER, PROMPT, is_alive, program
from waiting import wait_until

FILES = ("latents.safetensors", "memory.jsonl", "video.mp4")
SCENE = f"shots:\n- prompt: {PROMPT}\n  seconds: 2\n- prompt: {OTHER}\n  seconds: 2\n  cut: true\n"


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_killed_with_three_jobs_it_continues_to_the_same_bytes(tmp_path: Path, at_a_time: int) -> None:
    runs, engine = tmp_path / "runs", ("--engine", f"local:{at_a_time}")
    with program(runs, *engine) as server:
        first = server.create(seconds="20", seed=3)  # 14 blocks
        second = server.call("POST", "/v1/videos", json={"scene": SCENE, "seed": 4}).json()["id"]
        third = server.create(seconds="2", seed=5)
        jobs = (first, second, third)
        for running in jobs[:at_a_time]:
            server.wait_for(running, lambda video: video["llrag"]["block"] >= 2)
        switched = server.call("POST", f"/v1/videos/{first}/switch", json={"prompt": OTHER}).json()["at_block"]
        owners = [runs / each / "run.owner" for each in jobs[:at_a_time]]
        workers = [int(owner.read_text().split()[1]) for owner in owners if owner.is_file()]
        server.kill()
    assert first == owners[0].parent.name and workers
    wait_until(lambda: not any(is_alive(worker) for worker in workers))  # they would still write their runs
    with program(runs, *engine) as server:
        if at_a_time == 1:
            positions = [server.video(each)["llrag"]["position"] for each in (second, third)]
            assert positions == [0, 1]
        videos = [server.finished(each) for each in jobs]
        if at_a_time == 1:
            times = [read_job(runs / video["id"]).completed_at for video in videos]  # type: ignore[union-attr]
            assert times == sorted(times)
        record = RunFolder(runs / first).read_record()
        assert record.resumed_at and [(shot.name, shot.start) for shot in record.timeline.shots] == [
            ("shot-1", 0), ("now-1", switched),
        ]  # fmt: skip
        whole = server.call("POST", "/v1/videos", json={"scene": _switched_scene(record), "seed": 3}).json()["id"]
        again = server.call("POST", "/v1/videos", json={"scene": SCENE, "seed": 4}).json()["id"]
        last = server.create(seconds="2", seed=5)
        for before, undisturbed in ((second, again), (third, last)):
            server.finished(undisturbed)
            for name in FILES:
                assert (runs / before / name).read_bytes() == (runs / undisturbed / name).read_bytes(), name
        server.finished(whole)
        for name in ("latents.safetensors", "video.mp4"):  # the names of the shots differ
            assert (runs / first / name).read_bytes() == (runs / whole / name).read_bytes(), name


def _switched_scene(record: object) -> str:
    """The scene that has the same shots as a video whose prompt was changed."""
    assert hasattr(record, "timeline")
    first, second = (record.timeline.extent(shot) for shot in record.timeline.shots)
    lengths = (first.end_seconds - first.start_seconds, second.end_seconds - second.start_seconds)
    return f"shots:\n- prompt: {PROMPT}\n  seconds: {lengths[0]}\n- prompt: {OTHER}\n  seconds: {lengths[1]}\n"
