"""Lines of ``commits.jsonl``: what each block added to the other files. Importing this module does not import torch."""

from __future__ import annotations

from llrag_cli.files.records import Record
from llrag_cli.runs.record import Count


class VideoMark(Record):
    """Length of a video file after whole segments, and CRC-32 of its content up to there."""

    bytes: Count = 0
    frames: Count = 0
    fragments: Count = 0
    blocks: Count = 0
    crc32: Count | None = None  # None in runs that were written without


START = VideoMark(crc32=0)


class Commit(Record):
    """A line of ``commits.jsonl``: lengths of the files after a block, and a checksum of what the block added."""

    block: Count
    frames: Count
    crc32: Count
    memory_bytes: Count
    video: VideoMark
