"""The video of a run made again from its latents, perhaps by another decoder; the backbone is not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from llrag_cli.config import RunConfig
from llrag_cli.errors import UsageError
from llrag_cli.files.durable import replacing
from llrag_cli.files.ffmpeg import ffmpeg
from llrag_cli.files.tensors import DTYPES
from llrag_cli.files.transfer import to_device
from llrag_cli.models.vae import Decoder, stream_after_cut
from llrag_cli.runs.commits import VideoMark
from llrag_cli.runs.folder import RunFolder
from llrag_cli.runs.journal import Committed, read_committed, replace_marks
from llrag_cli.runs.record import RunRecord
from llrag_cli.runs.sink import VideoSink
from llrag_cli.runs.video import SegmentedVideo
from llrag_cli.runs.writer import segment_blocks


def decode_run(
    folder: RunFolder,
    config: RunConfig,
    decoder: Decoder,
    *,
    device: torch.device,
    on_block: Callable[[int], None] = lambda _: None,
) -> RunRecord:
    """Make ``video.mp4`` of a run anew from its committed latents, and return its record, which names the decoder.

    ``config`` is the run's with the decoder that is to be used; ``on_block`` is told how many blocks are decoded. The
    video is that which the run would have if it had been generated with this decoder. It replaces the old one at the
    end: until then an interruption changes nothing. Raises ``LlragError`` if the run has no blocks or is damaged.
    """
    ffmpeg()
    with folder.lock():
        record = folder.read_record()
        committed = read_committed(folder, shape=record.latent_shape, dtype=DTYPES[record.dtype])
        if committed.latents is None:
            raise UsageError(f"`{folder.path}` has no latents yet", hint="continue the run first")
        for stale in (*folder.path.glob("video.mp4.*.partial"), *folder.path.glob("video.mp4.*.part.mp4")):
            stale.unlink(missing_ok=True)  # of a decoding that was killed; the folder is locked
        marks: list[VideoMark] = []
        with replacing(folder.video) as target:
            video = SegmentedVideo(
                target,
                fps=record.fps,
                blocks=segment_blocks(config),
                upscale=config.video.upscale,
                crf=config.video.crf,
            )
            with VideoSink(decoder.stream(), video) as sink:
                for index, (latents, cut) in enumerate(_blocks(record, committed)):
                    there = to_device(latents, device)
                    restart = partial(stream_after_cut, decoder, there) if cut else None
                    sink.put(there, commit=lambda _: marks.append(video.mark), restart=restart)
                    on_block(index + 1)
        replace_marks(folder, marks)
        record = record.updated(
            config=config,
            decoder_layout=decoder.layout,
            decoder_compiled=decoder.is_compiled,
            video_frames_written=video.frames,
            video_crc32=video.crc32 if record.is_complete else None,
        )
        folder.write_record(record)
        return record


def _blocks(record: RunRecord, committed: Committed) -> Iterator[tuple[Tensor, bool]]:
    """The latents [1, T, C, h, w] of each committed block, and whether it begins a new picture."""
    assert committed.latents is not None
    size = record.timeline.frames_per_block
    cuts = {shot.start for shot in record.timeline.shots if shot.kind == "cut"}
    for index in range(committed.blocks):
        yield committed.latents[:, index * size : (index + 1) * size], index in cuts
