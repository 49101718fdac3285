"""Fragmented mp4 (ISO/IEC 14496-12): parsing, and moving fragments in time so that several files become one."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Box:
    """A box of an mp4, by offsets into the file."""

    kind: str
    start: int  # of its header
    content: int
    end: int


@dataclass(frozen=True)
class Fragments:
    """The parts of a fragmented mp4 of constant frame rate."""

    opening: bytes  # ftyp and moov, which describe the track
    body: bytes  # the fragments: moof and mdat, alternating
    frames: int
    fragments: int


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes in a range of bytes; raises ``ValueError`` for one that is cut off."""
    end = len(data) if end is None else end
    while start < end:
        if end - start < 8:
            raise ValueError("a box is cut off")
        size, kind = struct.unpack_from(">I4s", data, start)
        content = start + 8
        if size == 1 and end - start >= 16:
            (size,) = struct.unpack_from(">Q", data, content)
            content += 8
        if size < content - start or start + size > end:
            raise ValueError("a box is cut off")
        yield Box(kind.decode("latin-1"), start, content, start + size)
        start += size


def split_fragments(data: bytes, *, frames_before: int = 0, fragments_before: int = 0) -> Fragments:
    """Split a fragmented mp4, and renumber its fragments to follow earlier frames and fragments.

    Raises ``ValueError`` for a file that is cut off, or is not a fragmented mp4 of one track.
    """
    opening, body = bytearray(), bytearray()
    frames = fragments = 0
    for box in boxes(data):
        part = data[box.start : box.end]
        if box.kind in ("ftyp", "moov"):
            opening += part
        elif box.kind == "moof":
            fragments += 1
            moved, count = _moved(part, frames_before=frames_before, number=fragments_before + fragments)
            body += moved
            frames += count
        elif box.kind == "mdat":
            body += part
    if not opening or not frames:
        raise ValueError("no fragments")
    return Fragments(bytes(opening), bytes(body), frames, fragments)


def _moved(moof: bytes, *, frames_before: int, number: int) -> tuple[bytes, int]:
    """A fragment's header with its new time, and the number of frames in the fragment."""
    moved, frames = bytearray(moof), 0
    (top,) = boxes(moof)
    inner = {box.kind: box for box in boxes(moof, top.content, top.end)}
    struct.pack_into(">I", moved, inner["mfhd"].content + 4, number)
    track = list(boxes(moof, inner["traf"].content, inner["traf"].end))
    duration = _frame_duration(moof, next(box for box in track if box.kind == "tfhd"))
    for box in track:
        if box.kind == "tfdt":
            version = moof[box.content]
            wide = ">Q" if version == 1 else ">I"
            (time,) = struct.unpack_from(wide, moof, box.content + 4)
            struct.pack_into(wide, moved, box.content + 4, time + frames_before * duration)
        elif box.kind == "trun":
            (count,) = struct.unpack_from(">I", moof, box.content + 4)
            frames += count
    return bytes(moved), frames


def _frame_duration(moof: bytes, header: Box) -> int:
    """Duration of a frame in ticks of the track, from the default in the track fragment header."""
    (flags,) = struct.unpack_from(">I", moof, header.content)
    if not flags & 0x08:
        raise ValueError("the frame rate is not constant")
    offset = header.content + 8 + (8 if flags & 0x01 else 0) + (4 if flags & 0x02 else 0)
    (duration,) = struct.unpack_from(">I", moof, offset)
    return int(duration)
