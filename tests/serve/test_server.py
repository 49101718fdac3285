"""The server as a program: the real ``openai`` client, streams, changes while a video is generated, many clients."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch

from llrag_cli import Pipeline, RunFolder, make_video, read_video
from serve.serving import MODEL, OTHER, PROMPT, Program, events_of, program

FILES = ("latents.safetensors", "memory.jsonl", "video.mp4")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    with program(tmp_path_factory.mktemp("serve") / "runs") as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Program) -> Iterator[openai.OpenAI]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the client says when its own service ends
        with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as opened:
            yield opened


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@pytest.fixture(scope="module")
def made(server: Program, client: openai.OpenAI) -> Any:
    """A video of two blocks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return client.videos.create_and_poll(prompt=PROMPT, model=MODEL, seconds="2", extra_body={"seed": 1})  # type: ignore[arg-type]


def frames(content: bytes, folder: Path) -> int:
    (folder / "downloaded.mp4").write_bytes(content)
    return len(read_video(folder / "downloaded.mp4"))


def test_a_video_is_created_polled_listed_and_downloaded(client: openai.OpenAI, made: Any, tmp_path: Path) -> None:
    assert (made.status, made.progress, made.seconds, made.size, made.model) == (
        "completed",
        100,
        "2.625",
        "256x256",
        MODEL,
    )
    assert made.completed_at >= made.created_at and made.error is None and made.prompt == PROMPT
    assert frames(client.videos.download_content(made.id).read(), tmp_path) == 21
    for variant in ("thumbnail", "spritesheet"):
        assert client.videos.download_content(made.id, variant=variant).read()[:2] == b"\xff\xd8"  # type: ignore[arg-type]
    assert made.id in [video.id for video in client.videos.list(limit=1)]
    assert [model.id for model in client.models.list()] == [MODEL, "tiny"]


def test_it_is_the_video_that_a_command_makes(server: Program, made: Any, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)  # as the worker has
    try:
        folder = RunFolder(tmp_path / "run")
        make_video(Pipeline.load(MODEL, device="cpu"), PROMPT, folder, seconds=2, seed=1)
    finally:
        torch.set_num_threads(threads)
    for name in FILES:
        assert (folder.path / name).read_bytes() == (server.runs / made.id / name).read_bytes(), name


def test_a_remix_an_extension_and_a_deletion(client: openai.OpenAI, made: Any, tmp_path: Path) -> None:
    remix = client.videos.poll(client.videos.remix(made.id, prompt=OTHER).id)
    assert (remix.status, remix.remixed_from_video_id, remix.seconds) == ("completed", made.id, made.seconds)
    content = client.videos.download_content(remix.id).read()
    by_id = client.videos.extend(prompt=OTHER, seconds="1", video=b"", extra_body={"video_id": remix.id})  # type: ignore[arg-type]
    assert client.videos.poll(by_id.id).seconds == "4.125"
    assert frames(client.videos.download_content(by_id.id).read(), tmp_path) == 33
    file = client.videos.extend(prompt=OTHER, seconds="1", video=("own.mp4", content))  # type: ignore[arg-type]
    assert client.videos.poll(file.id).status == "completed" and file.id != remix.id
    character = client.videos.create_character(name="Mara", video=("own.mp4", content))
    assert character.id and client.videos.get_character(character.id).name == "Mara"
    for identifier in (file.id, by_id.id):
        assert client.videos.delete(identifier).deleted
        with pytest.raises(openai.NotFoundError):
            client.videos.retrieve(identifier)


def test_errors_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="unknown model `sora-2`"):
        client.videos.create(prompt=PROMPT, model="sora-2")
    with pytest.raises(openai.BadRequestError, match="has no pictures of 720x1280 pixels"):
        client.videos.create(prompt=PROMPT, size="720x1280")
    with pytest.raises(openai.BadRequestError, match="cannot be used"):
        client.videos.create(prompt=PROMPT, input_reference=("a.png", b"nothing"))


def test_ranges_of_a_video(server: Program, made: Any) -> None:
    path = f"/v1/videos/{made.id}/content"
    whole = server.call("GET", path)
    part = server.call("GET", path, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert whole.headers["content-type"] == "video/mp4" and whole.headers["accept-ranges"] == "bytes"
    assert server.call("GET", path, headers={"range": "bytes=99999999-"}).status_code == 416


def test_two_clients_watch_a_video_whose_prompt_is_changed(server: Program, tmp_path: Path) -> None:
    identifier = server.create(seconds="16")  # 11 blocks
    received: dict[int, bytes] = {}

    def watch(number: int) -> None:
        received[number] = server.call("GET", f"/v1/videos/{identifier}/live").content

    viewers = [threading.Thread(target=watch, args=(number,)) for number in range(2)]
    for viewer in viewers:
        viewer.start()
    told = []
    with httpx2.stream("GET", f"{server.address}/v1/videos/{identifier}/events", timeout=600) as stream:
        for event in events_of(stream.iter_lines()):
            told.append(event)
            if event[:2] == (3, "block"):
                answer = server.call("POST", f"/v1/videos/{identifier}/switch", json={"prompt": OTHER, "cut": True})
    assert answer.status_code == 200
    start = answer.json()["at_block"]
    assert 2 <= start < 11 and (2 * start, "switch") in [event[:2] for event in told]
    assert told[-1][1] == "done"
    for viewer in viewers:
        viewer.join()
    folder = server.runs / identifier
    assert received[0] == received[1] == (folder / "video.mp4").read_bytes()
    record = RunFolder(folder).read_record()
    assert [(shot.name, shot.start, shot.kind) for shot in record.timeline.shots] == [
        ("shot-1", 0, "start"), ("now-1", start, "cut"),
    ]  # fmt: skip
    picture = server.call("GET", f"/v1/videos/{identifier}/frames/30.jpg")
    assert picture.headers["content-type"] == "image/jpeg" and picture.content[:2] == b"\xff\xd8"
    export = server.call("GET", f"/v1/videos/{identifier}/export?format=zip")
    assert export.headers["content-type"] == "application/zip" and b"02-now-1.mp4" in export.content


def test_what_is_paused_cancelled_and_extended(server: Program) -> None:
    """The bytes are those of a video that was asked for at once."""
    identifier = server.create(seconds="30", seed=5)
    path = f"/v1/videos/{identifier}"
    server.wait_for(identifier, lambda video: video["llrag"]["block"] >= 1)
    assert server.call("POST", f"{path}/pause").json()["llrag"]["paused"]
    server.wait_for(identifier, lambda video: video["llrag"]["status"] == "queued")
    assert server.call("POST", f"{path}/resume").status_code == 200
    server.call("POST", f"{path}/cancel")
    stopped = server.wait_for(identifier, lambda video: video["llrag"]["extendable"])
    assert (stopped["status"], stopped["error"]["code"]) == ("failed", "cancelled")
    done = stopped["llrag"]["block"]
    assert 1 <= done < 21 and stopped["llrag"]["blocks_total"] == 21
    extended = server.call("POST", "/v1/videos/extensions", json={"video": identifier, "seconds": "1"})
    assert extended.json()["llrag"]["blocks_total"] == done + 1
    seconds = server.finished(identifier)["seconds"]
    other = server.create(seconds=seconds, seed=5)
    server.finished(other)
    for name in FILES:
        assert (server.runs / identifier / name).read_bytes() == (server.runs / other / name).read_bytes(), name


def test_the_examples_of_the_documentation_run(server: Program, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text(encoding="utf-8")
    (shell,) = re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    for command, text in ((["bash", "-e"], shell), ([sys.executable, "-W", "ignore"], code)):
        assert "http://127.0.0.1:8000" in text
        given = text.replace("http://127.0.0.1:8000", server.address)
        done = subprocess.run(command, input=given, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "completed 4.125 256x256\nTrue 7.125\n"
    assert (tmp_path / "events.txt").read_text().rstrip().splitlines()[-2] == "event: done"
    assert len(read_video(tmp_path / "circle.mp4")) == len(read_video(tmp_path / "cross.mp4")) == 33
    assert (tmp_path / "circle.jpg").read_bytes()[:2] == b"\xff\xd8"


def test_slow_clients_do_not_keep_others_waiting(server: Program, made: Any) -> None:
    """Clients that read nothing hold their connections while many others are answered."""
    with httpx2.Client(base_url=server.address, timeout=600, limits=httpx2.Limits(max_connections=None)) as client:
        slow = [client.send(client.build_request("GET", f"/v1/videos/{made.id}/{what}"), stream=True)
                for what in ("live", "content") for _ in range(15)]  # fmt: skip
        quick = [client.get("/v1/videos?limit=5").status_code for _ in range(50)]
        assert quick == [200] * 50
        assert {len(each.read()) for each in slow} == {len(client.get(f"/v1/videos/{made.id}/content").content)}


def test_the_death_of_a_worker_is_a_failed_job_and_not_a_dead_server(server: Program) -> None:
    identifier = server.create(seconds="60", seed=3)
    server.wait_for(identifier, lambda video: video["llrag"]["block"] >= 1)
    os.kill(int((server.runs / identifier / "run.owner").read_text().split()[1]), signal.SIGKILL)
    failed = server.wait_for(identifier, lambda video: video["status"] == "failed")
    assert failed["error"]["code"] == "worker_died" and "signal 9" in failed["error"]["message"]
    assert server.call("POST", f"/v1/videos/{identifier}/resume").json()["llrag"]["status"] != "failed"
    resumed = server.wait_for(identifier, lambda video: video["llrag"]["resumed_at"] != [])
    assert resumed["llrag"]["resumed_at"] == [failed["llrag"]["block"]]
    assert server.stop() == 0
    assert RunFolder(server.runs / identifier).read_record().status == "interrupted"  # its files are complete
