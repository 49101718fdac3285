"""The files of a run while its blocks are generated: latents, memory, video and record, committed block by block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.engine.rollout import Block
from llrag_cli.errors import LlragError, RunDivergedError
from llrag_cli.memory.strategies import RetrievalMemory
from llrag_cli.models.vae import Decoder, DecoderStream, stream_after_cut
from llrag_cli.runs.folder import BlockMemory, RunFolder
from llrag_cli.runs.journal import Committed, Journal
from llrag_cli.runs.record import MOST_WORK, RunRecord
from llrag_cli.runs.sink import VideoSink
from llrag_cli.runs.statistics import ArchiveUse
from llrag_cli.runs.video import SegmentedVideo
from llrag_cli.scenes.timeline import Timeline

# Seconds of video that are encoded together: one that is watched while it is generated shows them late by so much, and
# a killed run has to encode at most as much again.
SEGMENT_SECONDS = 1.5


class RunWriter:
    """The files of a run while its blocks are generated."""

    def __init__(self, pipeline: Pipeline, folder: RunFolder, record: RunRecord, committed: Committed) -> None:
        config = pipeline.config
        self.folder, self.committed = folder, committed
        self.record = record.updated(status="running", video_crc32=None)
        self.folder.write_record(self.record)
        self._decoder = pipeline.decoder
        self._journal = Journal(
            folder, shape=self.record.latent_shape, dtype=pipeline.backbone.dtype, committed=committed
        )
        self._video = SegmentedVideo(
            folder.video,
            fps=self.record.fps,
            blocks=segment_blocks(config),
            upscale=config.video.upscale,
            crf=config.video.crf,
            mark=committed.video,
        )
        self._written = committed.video.blocks  # committed blocks that are in whole segments of the video
        self.sink = VideoSink(pipeline.decoder.stream(), self._video)
        self._opening: Callable[[], DecoderStream] | None = partial(  # on the sink's thread, as all that it decodes
            decoder_at, pipeline.decoder, self.record.timeline, committed
        )
        self._timings = dict(self.record.seconds_by_part)
        self._archive = archive_use(self.record, config)

    def note(self, timeline: Timeline) -> None:
        """Record the timeline, if the prompt was switched while the video is generated."""
        if timeline != self.record.timeline:
            self.record = self.record.with_timeline(timeline)
            self.folder.write_record(self.record)

    def add(self, block: Block, row: int, timeline: Timeline) -> None:
        """Queue a block, a ``row`` of a batch, to be committed, decoded and written, unless it is there."""
        memory = memory_of(block, row, timeline)
        latents = block.latents[row : row + 1]
        restart = partial(stream_after_cut, self._decoder, latents) if block.cut else self._opening
        if block.index < self.committed.blocks:
            if memory.retrieved != self.committed.memory[block.index].retrieved:
                raise RunDivergedError(self.folder.path, block.index)
            if block.index >= self._written:
                self.sink.put(latents, restart=restart)
                self._opening = None
            return
        self._opening = None
        self.sink.put(latents, commit=partial(_commit, self._journal, memory, self._video), restart=restart)
        self._timings |= {name: self._timings.get(name, 0.0) + value for name, value in block.seconds.items()}
        if self._archive is not None:
            self._archive = self._archive.plus(retrieved=len(memory.retrieved), moved=block.moved)

    def finish(self, outcome: dict[str, Any], *, elapsed: float, peak: int | None) -> None:
        """Close the files; an error in that is raised only if the run itself did not fail."""
        elapsed = min(elapsed + self.record.seconds_of_work, MOST_WORK)
        self.record = self.record.updated(
            **outcome,
            blocks_committed=self._journal.blocks,
            video_frames_written=self._video.frames,
            video_crc32=self._video.crc32 if outcome["status"] == "complete" else None,
            seconds_of_work=round(elapsed, 3),
            frames_per_second=round(self._video.frames / elapsed, 2),
            seconds_by_part={name: round(value, 3) for name, value in self._timings.items()},
            archive=self._archive,
            peak_memory_bytes=peak,
        )
        try:
            self._journal.close()
            self.folder.write_record(self.record)
        except LlragError:
            if self.record.is_complete:
                raise


def decoder_at(decoder: Decoder, timeline: Timeline, committed: Committed) -> DecoderStream:
    """A stream that has seen what it needs of the blocks that are in whole segments of the video already."""
    written, size = committed.video.blocks, timeline.frames_per_block
    if not written or committed.latents is None:
        return decoder.stream()
    cut = max((shot.start for shot in timeline.shots if shot.kind == "cut" and shot.start < written), default=0)
    first = max(cut * size, written * size - decoder.reach)
    before = committed.latents[:, first : written * size]
    stream = stream_after_cut(decoder, before) if cut and first == cut * size else decoder.stream()
    stream.decode(before)
    return stream


def archive_use(record: RunRecord, config: RunConfig) -> ArchiveUse | None:
    """How a run used its archive so far, if it has one; with another tier than before, counting starts again."""
    if not isinstance(config.memory, RetrievalMemory):
        return None
    tier = config.memory.archive
    assert tier != "auto"  # chosen before the record was written
    before = record.archive
    return before if before is not None and before.tier == tier else ArchiveUse(tier=tier)


def memory_of(block: Block, row: int, timeline: Timeline) -> BlockMemory:
    """What a block retrieved for one video of the batch."""
    if not block.retrieved:
        return BlockMemory(block.start)
    frames = block.retrieved[row]
    sources = () if timeline.is_plain else tuple(timeline.name_of(frame) for frame in frames)
    return BlockMemory(block.start, tuple(frames), tuple(block.similarities[row]), sources)


def _commit(journal: Journal, memory: BlockMemory, video: SegmentedVideo, latents: Tensor) -> None:
    journal.commit(memory, latents, video.mark)  # the mark of the moment


def segment_blocks(config: RunConfig) -> int:
    """How many blocks are encoded together; it depends on the configuration only, so that interruptions do not show."""
    frames = config.video_frames(1 + config.backbone.frames_per_block) - 1
    return max(1, round(SEGMENT_SECONDS * config.backbone.fps / frames))
