"""The streams of a video that grows: whole boxes, no gap and no end before the end; events that keep their numbers."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from llrag_cli import Pipeline, RunFolder, make_video
from llrag_cli.runs.mp4 import boxes
from llrag_cli.serve import live
from llrag_cli.serve.live import Followers, events, growing_video, opened
from llrag_cli.serve.queue import Queue, Video
from llrag_cli.serve.settings import Limits
from llrag_cli.serve.videos import first_bytes
from llrag_cli.serve.views import RunView, codecs_of, whole_boxes
from serve.serving import MODEL, OTHER, PROMPT, events_of


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of seven blocks, the last two under another prompt."""
    folder = RunFolder(tmp_path_factory.mktemp("made") / "run")
    count = 0

    def between(session: object) -> None:
        nonlocal count
        if count == 5:
            session.switch(OTHER, cut=True, name="now-1")  # type: ignore[attr-defined]
        count += 1

    make_video(Pipeline.load(MODEL, device="cpu"), PROMPT, folder, seconds=10, between=between)
    return folder


class Growing:
    """A run that is copied piece by piece, as if it were being generated."""

    def __init__(self, made: RunFolder, runs: Path) -> None:
        self.made, self.folder = made, RunFolder(runs / "run")
        self.folder.path.mkdir()
        self.record = made.read_record().updated(status="running", video_crc32=None)
        self.folder.write_record(self.record)
        self.commits = made.commits.read_bytes().splitlines(keepends=True)
        self.memory = made.memory.read_bytes().splitlines(keepends=True)
        self.video = made.video.read_bytes()
        (self.folder.path / "run.owner").write_text("process 1 on another machine")  # somebody writes it
        self.queue = Queue(runs, Limits())
        self.followers = Followers(self.queue)
        self.one = self.queue.get(self.queue.videos()[0].id)

    def grow(self, blocks: int, video: int) -> None:
        """Have so many blocks, and so many bytes of the video."""
        self.folder.memory.write_bytes(b"".join(self.memory[:blocks]))
        self.folder.commits.write_bytes(b"".join(self.commits[:blocks]))
        self.folder.video.write_bytes(self.video[:video])

    def end(self) -> None:
        self.grow(len(self.commits), len(self.video))
        shutil.copy(self.made.record, self.folder.record)
        (self.folder.path / "run.owner").unlink()


@pytest.fixture
def growing(made: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Growing:
    monkeypatch.setattr(live, "POLL", 0.001)
    return Growing(made, tmp_path)


def test_the_video_is_sent_in_whole_boxes_to_all_who_follow_it(growing: Growing) -> None:
    async def follow(follower: int) -> bytes:
        received = b""
        async for content in growing_video(growing.followers, growing.one):
            assert whole_boxes(content) == len(content)
            received += content
            await asyncio.sleep(0.002 * follower)  # some are slow
        return received

    async def grow() -> None:
        for step in range(1, 12):
            growing.grow(min(step, 7), len(growing.video) * step // 12 + 5)
            await asyncio.sleep(0.005)
        growing.end()

    async def all_of_it() -> list[bytes]:
        async with asyncio.TaskGroup() if hasattr(asyncio, "TaskGroup") else _Group() as group:
            followers = [group.create_task(follow(number)) for number in range(4)]
            group.create_task(grow())
        return [task.result() for task in followers]

    assert asyncio.run(all_of_it()) == [growing.video] * 4


class _Group:
    """``asyncio.TaskGroup`` for Python 3.10."""

    async def __aenter__(self) -> _Group:
        self._tasks: list[asyncio.Task[object]] = []
        return self

    def create_task(self, work: object) -> asyncio.Task[object]:
        self._tasks.append(asyncio.ensure_future(work))  # type: ignore[arg-type]
        return self._tasks[-1]

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*self._tasks)


def test_after_a_resumption_the_boxes_behind_the_last_segment_are_sent_again(growing: Growing) -> None:
    """A run that stopped had an incomplete segment at its end, which is written anew, longer."""
    ends = [box.end for box in boxes(growing.video)]
    mark = RunView(growing.made.path)
    mark.refresh()
    half = next(end for end in ends if end > mark.marked_bytes)

    async def received() -> list[bytes]:
        stream = growing_video(growing.followers, growing.one)
        growing.grow(7, half)
        parts = [await anext(stream)]
        growing.grow(7, mark.marked_bytes)
        growing.folder.write_record(growing.record.updated(resumed_at=(7,)))
        await asyncio.sleep(0.01)
        growing.end()
        shutil_record = growing.made.read_record().updated(resumed_at=(7,))
        growing.folder.write_record(shutil_record)
        return parts + [part async for part in stream]

    first, *rest = asyncio.run(received())
    assert len(first) == half
    assert first[: mark.marked_bytes] + b"".join(rest) == growing.video


def test_events_tell_blocks_switches_and_the_end(growing: Growing, made: RunFolder) -> None:
    async def tell(last: int, act: Callable[[], None]) -> list[tuple[int, str, dict[str, object]]]:
        lines: list[str] = []

        async def collect(stream: AsyncIterator[str]) -> None:
            async for text in stream:
                lines.extend(text.splitlines())

        task = asyncio.ensure_future(collect(events(growing.followers, growing.one, last)))
        await asyncio.sleep(0.01)
        act()
        await task
        return [*events_of(iter(lines))]

    growing.grow(3, 0)
    growing.one.view.refresh()
    told = asyncio.run(tell(0, growing.end))
    log = [(number, kind) for number, kind, _ in told if kind in ("block", "switch")]
    assert log == [
        (1, "block"),
        (3, "block"),
        (5, "block"),
        (7, "block"),
        (9, "block"),
        (10, "switch"),
        (11, "block"),
        (13, "block"),
    ]
    contents = {number: content for number, kind, content in told if kind in ("block", "switch")}
    assert contents[10] == {"seconds": 7.125, "prompt": OTHER, "cut": True}
    assert contents[13]["latent_frames"] == 21 and contents[13]["seconds"] == 10.125
    retrieved = contents[13]["retrieved"]
    assert isinstance(retrieved, list) and retrieved[0]["source"] in ("shot-1", "now-1") and retrieved[0]["similarity"]
    assert contents[1]["fps"] is None and all("fps" in contents[number] for number in (9, 11))
    states = [content for _, kind, content in told if kind == "status"]
    assert [state["status"] for state in (states[0], states[-1])] == ["in_progress", "completed"]
    assert told[-1][1] == "done" and told[-1][2] == {"status": "completed", "seconds": 10.125}
    again = asyncio.run(tell(9, lambda: None))
    assert [(number, kind) for number, kind, _ in again if kind in ("block", "switch")] == log[5:]


def test_a_download_of_a_growing_file_has_the_length_it_began_with(growing: Growing) -> None:
    growing.grow(2, 1000)
    parts = first_bytes(growing.folder.video, 800)
    growing.grow(3, 2000)
    assert b"".join(parts) == growing.video[:800]


def test_a_video_without_frames_is_no_stream(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    video = Video("run_x", folder)

    async def answer() -> bool:
        return await opened(Followers(Queue(tmp_path, Limits())), video)

    assert asyncio.run(answer()) is False


def test_the_codec_is_that_of_the_file(made: RunFolder, tmp_path: Path) -> None:
    found = codecs_of(made.video)
    assert found is not None and found.startswith("avc1.") and len(found) == 11
    (tmp_path / "short.mp4").write_bytes(made.video.read_bytes()[:100])
    assert codecs_of(tmp_path / "short.mp4") is None and codecs_of(tmp_path / "none.mp4") is None


def test_a_view_reads_only_what_is_new_and_begins_again_if_the_run_was_replaced(growing: Growing) -> None:
    view = RunView(growing.folder.path)
    for blocks in (2, 2, 5, 7):
        growing.grow(blocks, 0)
        view.refresh()
        assert len(view.blocks) == blocks
    assert [each.seen is None for each in view.blocks] == [True] * 2 + [False] * 5
    growing.grow(1, 0)
    view.refresh()
    assert len(view.blocks) == 1
    growing.folder.commits.write_bytes(b"nonsense\n" * 40)
    view.refresh()
    assert view.damage is not None and len(view.blocks) <= 1
