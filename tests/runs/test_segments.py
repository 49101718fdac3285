"""Videos of segments: one after the other they are one video, whose bytes do not depend on interruptions."""

from __future__ import annotations

import struct
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.presets import load_config
from llrag_cli.runs.mp4 import boxes, split_fragments
from llrag_cli.runs.video import SegmentedVideo, VideoWriter, open_video, read_video
from llrag_cli.runs.writer import segment_blocks


def moving(frames: int) -> Tensor:
    """A square that moves over a slope, [frames, 3, 32, 48] in [-1, 1]."""
    video = torch.linspace(-0.5, 0.5, 48).expand(frames, 3, 32, 48).clone()
    for number, frame in enumerate(video):
        frame[:, 8:20, number % 36 : number % 36 + 12] = 0.9
    return video


def blocks_of(video: Tensor) -> list[Tensor]:
    return [video[:9], *video[9:].split(12)]


def write(path: Path, parts: list[Tensor]) -> SegmentedVideo:
    video = SegmentedVideo(path, fps=8, blocks=2)
    for part in parts:
        video.write(part)
    video.close()
    return video


def test_segments_are_one_video(tmp_path: Path) -> None:
    frames = moving(9 + 4 * 12)
    video = write(tmp_path / "video.mp4", blocks_of(frames))
    read = read_video(tmp_path / "video.mp4")
    assert len(read) == video.frames == 57
    assert (read - (frames + 1) / 2).abs().mean() < 0.02
    assert (video.mark.blocks, video.mark.frames) == (4, 45)  # the fifth block is there, but in no whole segment
    assert open_video(tmp_path / "video.mp4").fps == 8
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resumed_video_has_the_same_bytes(tmp_path: Path, stop: int) -> None:
    parts = blocks_of(moving(9 + 4 * 12))
    write(tmp_path / "whole.mp4", parts)
    broken = SegmentedVideo(tmp_path / "video.mp4", fps=8, blocks=2)
    for part in parts[:stop]:
        broken.write(part)
    broken.close()
    assert len(read_video(tmp_path / "video.mp4")) == sum(map(len, parts[:stop]))
    again = SegmentedVideo(tmp_path / "video.mp4", fps=8, blocks=2, mark=broken.mark)
    for part in parts[broken.mark.blocks :]:
        again.write(part)
    again.close()
    assert (tmp_path / "video.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_times_go_on(tmp_path: Path) -> None:
    video = write(tmp_path / "video.mp4", blocks_of(moving(33)))
    content = (tmp_path / "video.mp4").read_bytes()
    kinds = [box.kind for box in boxes(content)]
    assert kinds[:2] == ["ftyp", "moov"]
    assert kinds[2:] == ["moof", "mdat"] * kinds.count("moof")
    numbers, times, counts = [], [], []
    for fragment in (box for box in boxes(content) if box.kind == "moof"):
        inner = {box.kind: box for box in boxes(content, fragment.content, fragment.end)}
        track = {box.kind: box for box in boxes(content, inner["traf"].content, inner["traf"].end)}
        numbers += struct.unpack_from(">I", content, inner["mfhd"].content + 4)
        times += struct.unpack_from(
            ">Q" if content[track["tfdt"].content] else ">I", content, track["tfdt"].content + 4
        )
        counts += struct.unpack_from(">I", content, track["trun"].content + 4)
    assert numbers == [*range(1, len(numbers) + 1)] and sum(counts) == 33
    ticks = times[1] // counts[0]
    assert ticks > 0 and times == [ticks * frames for frames in accumulate(counts[:-1], initial=0)]
    again = split_fragments(content)
    assert (again.frames, again.opening + again.body) == (33, content)
    assert video.frames == 33


@pytest.mark.parametrize("length", [0, 5, 40, 900])
def test_what_is_cut_off_is_no_segment(tmp_path: Path, length: int) -> None:
    writer = VideoWriter(tmp_path / "video.mp4", fps=8)
    writer.write(moving(9))
    writer.close()
    with pytest.raises(ValueError, match=r"cut off|no fragments"):
        split_fragments((tmp_path / "video.mp4").read_bytes()[:length])


def test_an_encoder_that_stops_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = SegmentedVideo(tmp_path / "video.mp4", fps=8, blocks=2)
    video.write(moving(9))
    monkeypatch.setattr(VideoWriter, "close", lambda writer: writer.path.write_bytes(b"\0\0\0\x18ftyp"))
    with pytest.raises(LlragError, match=r"video\.mp4` could not be written: ffmpeg left a box is cut off"):
        video.write(moving(12))


def test_a_header_that_is_cut_off_behind_a_whole_box_is_said() -> None:
    whole = (8).to_bytes(4, "big") + b"free"
    assert [(box.kind, box.start, box.content, box.end) for box in boxes(2 * whole)] == [
        ("free", 0, 8, 8),
        ("free", 8, 16, 16),
    ]
    with pytest.raises(ValueError, match="a box is cut off"):
        list(boxes(whole + whole[:7]))


@pytest.mark.parametrize(
    ("backbone", "blocks"),
    [("self-forcing", 2), ("causal-forcing-framewise", 6), ("tiny", 1)],  # blocks of 12, 4 and 12 frames
)
def test_a_segment_lasts_about_a_second_and_a_half(backbone: str, blocks: int) -> None:
    config = load_config(backbone)
    assert config.backbone.fps == (8 if backbone == "tiny" else 16)
    assert segment_blocks(config) == blocks
