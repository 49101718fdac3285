"""What is streamed while a video is generated: the file as it grows, and events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from anyio.to_thread import run_sync

from llrag_cli.serve.objects import is_over, status_of, timeline_of, video_object
from llrag_cli.serve.queue import Queue, Video
from llrag_cli.serve.views import BlockSeen, whole_boxes

POLL = 0.1  # seconds between looks at the files of a run, however many clients follow it
QUIET = 15.0  # seconds after which a comment keeps an idle stream of events open
PIECE = 1 << 20  # bytes of a video that are read at once; more, if a box is larger


class Followers:
    """Looks at the runs that are followed, once for all who follow them."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self._looks: dict[str, asyncio.Task[None]] = {}
        self.closing = False

    async def look(self, video: Video) -> None:
        """Wait for the next look at a video; its view is then up to date."""
        task = self._looks.get(video.id)
        if task is None or task.done():
            task = asyncio.create_task(self._look(video))
            self._looks[video.id] = task
        await asyncio.shield(task)

    async def _look(self, video: Video) -> None:
        try:
            await asyncio.sleep(POLL)
            await run_sync(video.view.refresh)
        finally:
            self._looks.pop(video.id, None)

    def is_gone(self, video: Video) -> bool:
        """Whether nobody will write the video any more because it was deleted, or the server ends."""
        return self.closing or not video.folder.is_dir()


async def growing_video(followers: Followers, video: Video) -> AsyncIterator[bytes]:
    """The mp4 of a video, in whole boxes, from its beginning to its end, as it is written.

    When a run is resumed, its file is cut back to whole segments. The boxes after that are sent again: they have the
    times of those that they replace.
    """
    position, resumed = 0, _resumptions(video)
    while True:
        over = is_over(video)
        content = await run_sync(_boxes, video, position)
        if (now := _resumptions(video)) != resumed:  # what was read may be of either file
            resumed, position = now, min(position, video.view.marked_bytes)
        elif content:
            position += len(content)
            yield content
        elif over or followers.is_gone(video):
            return
        else:
            await followers.look(video)


def _resumptions(video: Video) -> int:
    return 0 if video.view.record is None else len(video.view.record.resumed_at)


def _boxes(video: Video, position: int) -> bytes:
    """The next whole boxes of the file from a position on; nothing if there is none yet.

    The view is refreshed after that: a run records that it is resumed before it cuts its file back.
    """
    size = PIECE
    try:
        with video.view.folder.video.open("rb") as file:
            while True:
                file.seek(position)
                content = file.read(size)
                end = whole_boxes(content)
                if end or len(content) < size:
                    return content[:end]
                size *= 2
    except OSError:
        return b""
    finally:
        video.view.refresh()


async def opened(followers: Followers, video: Video) -> bool:
    """Wait until there is something of a video to play; False if there never will be."""
    while video.view.codecs is None:
        if is_over(video) or followers.is_gone(video):
            return False
        await followers.look(video)
    return True


async def events(followers: Followers, video: Video, last: int) -> AsyncIterator[str]:
    """Server-sent events of a video, from the one after ``last`` on.

    A block has an odd number, and the change of the prompt before it the even one below: so they keep their numbers
    when the server is started again. The state of the video has the number of what came before it.
    """
    queue = followers.queue
    sent, state, quiet, ended = last, "", 0.0, False
    while True:
        before = sent
        if over := is_over(video):  # the writer may have ended since the last look, with blocks not seen yet
            await run_sync(video.view.refresh)
            over = is_over(video)
        for number, kind, content in _log(video, sent):
            sent = number
            yield _event(number, kind, content)
        current = video_object(queue, video)
        if (text := json.dumps(current, ensure_ascii=False)) != state:
            state, quiet = text, 0.0
            yield _event(sent, "status", current)
        if over and not ended:
            status = status_of(video)
            if status == "failed":
                yield _event(sent, "error", current["error"] or {})
            yield _event(sent, "done", {"status": status, "seconds": current["llrag"]["seconds_done"]})
        ended = over
        if over or followers.is_gone(video):
            return
        if sent == before:
            quiet += POLL
            if quiet >= QUIET:
                quiet = 0.0
                yield ": still here\n\n"
        await followers.look(video)


def _log(video: Video, last: int) -> list[tuple[int, str, dict[str, Any]]]:
    """Blocks, and changes of the prompt, that come after an event."""
    timeline, record = timeline_of(video), video.view.record
    if timeline is None or record is None:
        return []
    found: list[tuple[int, str, dict[str, Any]]] = []
    blocks, size, config = video.view.blocks, timeline.frames_per_block, record.config
    starts = {shot.start: shot for shot in timeline.shots if shot.start}
    for index in range(max(0, last // 2), len(blocks) + 1):
        if 2 * index > last and (shot := starts.get(index)) is not None:
            start = timeline.extent(shot).start_seconds
            found.append((2 * index, "switch", {"seconds": start, "prompt": shot.prompt, "cut": shot.kind == "cut"}))
        if index == len(blocks) or 2 * index + 1 <= last:
            continue
        memory = blocks[index].memory
        frames = (index + 1) * size
        similar = zip(memory.retrieved, memory.similarities, strict=True)
        content = {
            "block": index,
            "latent_frames": frames,
            "seconds": config.video_frames(frames) / config.backbone.fps,
            "fps": _speed(blocks, index, size * config.latent_space.temporal_ratio),
            "retrieved": [
                {
                    "frame": frame,
                    "seconds": config.second_of(frame) if frame >= 0 else None,
                    "similarity": round(similarity, 4),
                    "source": timeline.name_of(frame),
                }
                for frame, similarity in similar
            ],
        }
        found.append((2 * index + 1, "block", content))
    return found


def _speed(blocks: tuple[BlockSeen, ...], index: int, frames: int) -> float | None:
    """Video frames per second at which a block was generated, if this process saw it and the one before."""
    if not index:
        return None
    now, before = blocks[index].seen, blocks[index - 1].seen
    return round(frames / (now - before), 2) if now is not None and before is not None and now > before else None


def _event(number: int, kind: str, content: dict[str, Any]) -> str:
    return f"id: {number}\nevent: {kind}\ndata: {json.dumps(content, ensure_ascii=False)}\n\n"
