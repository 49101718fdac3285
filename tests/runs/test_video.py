from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.files.ffmpeg import ffmpeg
from llrag_cli.models.embedded.vae import TinyDecoder, TinyVAE, TinyVAEConfig
from llrag_cli.runs.sink import VideoSink
from llrag_cli.runs.video import VideoWriter, open_video, read_video
from waiting import wait_until


def tiny_decoder() -> TinyDecoder:
    torch.manual_seed(0)
    return TinyDecoder(TinyVAE(TinyVAEConfig(latent_channels=4, fine=8, coarse=16)))


def test_a_request_to_stop_waits_until_the_file_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Log:
        def write(self, frames: torch.Tensor) -> None:
            written.append("frames")

        def close(self) -> None:
            written.append("end")

    class Plain:
        def decode(self, latents: torch.Tensor) -> torch.Tensor:
            return latents

    sink = VideoSink(Plain(), Log())
    join, requests = sink._thread.join, iter([KeyboardInterrupt])

    def interrupted() -> None:
        if (request := next(requests, None)) is not None:
            raise request
        join()

    monkeypatch.setattr(sink._thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt), sink:
        sink.put(torch.zeros(1, 1, 3, 2, 2))
    assert written == ["frames", "end"]


@pytest.mark.parametrize("upscale", [1, 4])
def test_frames_survive_the_file(tmp_path: Path, upscale: int) -> None:
    shades = torch.linspace(-0.9, 0.9, 20).view(20, 1, 1, 1).expand(20, 3, 32, 48)
    writer = VideoWriter(tmp_path / "video.mp4", fps=8, upscale=upscale, crf=8)
    writer.write(shades[:7])
    writer.write(shades[7:])
    writer.close()
    frames = read_video(tmp_path / "video.mp4")
    assert frames.shape == (20, 3, 32 * upscale, 48 * upscale)
    torch.testing.assert_close(frames.mean(dim=(1, 2, 3)), shades.mean(dim=(1, 2, 3)) / 2 + 0.5, atol=0.02, rtol=0)


def test_a_video_has_the_size_of_its_frames_unless_it_is_enlarged(tmp_path: Path) -> None:
    for name, settings, size in (("plain.mp4", {}, (64, 48)), ("double.mp4", {"upscale": 2}, (128, 96))):
        writer = VideoWriter(tmp_path / name, fps=8, **settings)
        writer.write(torch.zeros(2, 3, 48, 64))
        writer.close()
        video = open_video(tmp_path / name)
        assert (video.width, video.height, video.fps) == (*size, 8)
        video.close()


def test_an_unfinished_file_plays(tmp_path: Path) -> None:
    """The bytes on disk while the writer is still open are a video of what was written."""
    writer = VideoWriter(tmp_path / "video.mp4", fps=8)
    writer.write(torch.zeros(64, 3, 32, 32))
    wait_until(lambda: (tmp_path / "video.mp4").stat().st_size > 2500)
    copy = tmp_path / "copy.mp4"
    copy.write_bytes((tmp_path / "video.mp4").read_bytes())
    writer.close()
    assert 0 < len(read_video(copy)) <= 64
    assert len(read_video(tmp_path / "video.mp4")) == 64


class Failing:
    """A stream that fails at its second block."""

    def __init__(self) -> None:
        self.calls = 0

    def decode(self, latents: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("no second block")
        return torch.zeros(1, 9, 3, 32, 32)


def test_an_error_on_the_thread_reaches_the_caller_and_the_file_stays(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "video.mp4", fps=8)
    with pytest.raises(RuntimeError, match="no second block"), VideoSink(Failing(), writer) as sink:
        for _ in range(20):
            sink.put(torch.zeros(1, 3, 4, 4, 4))
    assert len(read_video(tmp_path / "video.mp4")) == 9


def test_an_interrupt_leaves_what_was_handed_over(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "video.mp4", fps=8)
    with pytest.raises(KeyboardInterrupt), VideoSink(tiny_decoder().stream(), writer) as sink:
        sink.put(torch.zeros(1, 3, 4, 4, 4))
        sink.put(torch.zeros(1, 3, 4, 4, 4))
        raise KeyboardInterrupt
    assert len(read_video(tmp_path / "video.mp4")) == 21


def test_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "nowhere" / "video.mp4", fps=8)
    with pytest.raises(LlragError, match="could not be written: its folder does not exist"):
        for _ in range(50):
            writer.write(torch.zeros(9, 3, 32, 32))


def test_a_missing_ffmpeg_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/nowhere/ffmpeg")
    with pytest.raises(LlragError, match="ffmpeg not found"):
        ffmpeg()


def test_no_video_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_bytes(b"not a video")
    with pytest.raises(LlragError, match=r"x\.mp4` cannot be read as a video"):
        read_video(tmp_path / "x.mp4")


@pytest.mark.parametrize("about", [{"size": (0, 4), "fps": 8}, {"size": (4, 0), "fps": 8}, {"size": (4, 4), "fps": 0}])
def test_a_video_without_a_size_or_a_rate_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, about: dict[str, Any]
) -> None:
    monkeypatch.setattr("imageio_ffmpeg.read_frames", lambda _: iter([about]))
    with pytest.raises(LlragError, match="cannot be read as a video"):
        open_video(tmp_path / "video.mp4")
