"""A server that is killed at any moment: what it had accepted continues, in its order, to the same bytes."""

from __future__ import annotations

from pathlib import Path

from llrag_cli import RunFolder
from llrag_cli.serve.jobs import read_job
from serve.serving import OTHER, PROMPT, is_alive, program
from waiting import wait_until

FILES = ("latents.safetensors", "memory.jsonl", "video.mp4")
SCENE = f"shots:\n- prompt: {PROMPT}\n  seconds: 2\n- prompt: {OTHER}\n  seconds: 2\n  cut: true\n"


def test_killed_with_three_jobs_it_continues_to_the_same_bytes(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with program(runs) as server:
        first = server.create(seconds="20", seed=3)  # 14 blocks
        second = server.call("POST", "/v1/videos", json={"scene": SCENE, "seed": 4}).json()["id"]
        third = server.create(seconds="2", seed=5)
        server.wait_for(first, lambda video: video["llrag"]["block"] >= 2)
        switched = server.call("POST", f"/v1/videos/{first}/switch", json={"prompt": OTHER}).json()["at_block"]
        worker = int((runs / first / "run.owner").read_text().split()[1])
        server.kill()
    wait_until(lambda: not is_alive(worker))  # it would still write the run
    with program(runs) as server:
        positions = [server.video(each)["llrag"]["position"] for each in (second, third)]
        assert positions == [0, 1]
        videos = [server.finished(each) for each in (first, second, third)]
        times = [read_job(runs / video["id"]).completed_at for video in videos]  # type: ignore[union-attr]
        assert times == sorted(times)
        record = RunFolder(runs / first).read_record()
        assert [(shot.name, shot.start) for shot in record.timeline.shots] == [("shot-1", 0), ("now-1", switched)]
        again = server.call("POST", "/v1/videos", json={"scene": SCENE, "seed": 4}).json()["id"]
        whole = server.call("POST", "/v1/videos", json={"scene": _switched_scene(record), "seed": 3}).json()["id"]
        server.finished(again)
        for name in FILES:
            assert (runs / second / name).read_bytes() == (runs / again / name).read_bytes(), name
        server.finished(whole)
        for name in ("latents.safetensors", "video.mp4"):  # the names of the shots differ
            assert (runs / first / name).read_bytes() == (runs / whole / name).read_bytes(), name


def _switched_scene(record: object) -> str:
    """The scene that has the same shots as a video whose prompt was changed."""
    assert hasattr(record, "timeline")
    first, second = (record.timeline.extent(shot) for shot in record.timeline.shots)
    lengths = (first.end_seconds - first.start_seconds, second.end_seconds - second.start_seconds)
    return f"shots:\n- prompt: {PROMPT}\n  seconds: {lengths[0]}\n- prompt: {OTHER}\n  seconds: {lengths[1]}\n"
