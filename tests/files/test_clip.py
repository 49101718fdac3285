"""Clips of every kind that cameras and programs write, made here with the same ffmpeg that reads them."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.clip import probe_clip, read_clip
from llrag_cli.files.ffmpeg import ffmpeg

RED, GREEN, BLUE, WHITE, GREY = (208, 32, 32), (32, 176, 48), (40, 48, 208), (224, 224, 224), (128, 128, 128)
H264 = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "4")
TAGGED = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
LOSSLESS = ("-c:v", "ffv1", "-pix_fmt", "gray")
COUNT = 5  # grey levels from one frame of a counter to the next


def run(*arguments: object, content: bytes = b"") -> None:
    command = [ffmpeg(), "-v", "error", "-y", *map(str, arguments)]
    subprocess.run(command, input=content, check=True, capture_output=True)


def encode(path: Path, pictures: np.ndarray[Any, Any], *options: object, fps: int = 8) -> Path:
    """A clip of pictures, uint8 [T, H, W, 3]."""
    frames = np.ascontiguousarray(pictures, dtype=np.uint8)
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", fps, "-i", "-")
    run(*raw, *options, path, content=frames.tobytes())
    return path


def card(width: int, height: int, *, frames: int = 3) -> np.ndarray[Any, Any]:
    """Pictures with a colour in each quarter: red, green; blue, white."""
    picture = np.zeros((height, width, 3), np.uint8)
    top, left = slice(None, height // 2), slice(None, width // 2)
    picture[:] = WHITE
    picture[top], picture[:, left] = GREEN, BLUE
    picture[top, left] = RED
    return np.repeat(picture[None], frames, axis=0)


def counter(frames: int, *, width: int = 16, height: int = 16) -> np.ndarray[Any, Any]:
    """Pictures whose grey level counts."""
    levels = np.arange(frames, dtype=np.uint8) * COUNT
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3))


def counted(clip: Tensor) -> list[int]:
    """The numbers of the frames of a counter."""
    levels = (clip.mean(dim=(1, 2, 3)) + 1) * 127.5
    return (levels / COUNT).round().int().tolist()


def pixels(clip: Tensor) -> np.ndarray[Any, Any]:
    """Frames as uint8 [T, H, W, 3]."""
    assert clip.dtype == torch.float32 and clip.abs().max() <= 1
    return ((clip + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def close_to(picture: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], *, tolerance: int = 6) -> bool:
    """Whether the middles of the four quarters agree."""
    height, width = expected.shape[:2]
    assert picture.shape == expected.shape
    rows, columns = [height // 4, 3 * height // 4], [width // 4, 3 * width // 4]
    return all(
        np.abs(picture[row, column].astype(int) - expected[row, column]).max() <= tolerance
        for row in rows
        for column in columns
    )


def noise(path: Path, *options: object, seconds: int = 4, fps: int = 24) -> Path:
    """A clip with many bytes for each frame."""
    pictures = np.random.default_rng(0).integers(0, 256, (seconds * fps, 48, 64, 3))
    return encode(path, pictures, *options, fps=fps)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mp4", (*H264, "-pix_fmt", "yuv420p")),
        ("h264.mov", (*H264, "-pix_fmt", "yuv422p")),
        ("h264.mkv", (*H264, "-pix_fmt", "yuv444p")),
        ("high10.mp4", (*H264, "-pix_fmt", "yuv420p10le")),
        ("hevc10.mp4", ("-c:v", "libx265", "-crf", "4", "-x265-params", "log-level=none", "-pix_fmt", "yuv420p10le")),
        ("bt709.mp4", (*H264, "-pix_fmt", "yuv420p", "-vf", "scale=out_color_matrix=bt709:out_range=tv", *TAGGED)),
        (
            "full.mp4",
            (
                *(*H264, "-pix_fmt", "yuv420p", "-vf", "scale=out_color_matrix=bt709:out_range=pc", *TAGGED),
                *("-color_range", "pc"),
            ),
        ),
        ("vp9.webm", ("-c:v", "libvpx-vp9", "-crf", "4", "-b:v", "0", "-deadline", "realtime", "-cpu-used", "8")),
        ("vp8.webm", ("-c:v", "libvpx", "-crf", "4", "-b:v", "2M", "-deadline", "realtime", "-cpu-used", "8")),
        ("prores.mov", ("-c:v", "prores_ks")),
        ("mpeg4.avi", ("-c:v", "mpeg4", "-q:v", "2")),
        ("stream.ts", (*H264, "-pix_fmt", "yuv420p", "-muxrate", "2M")),
        ("rgb.mkv", ("-c:v", "ffv1", "-pix_fmt", "bgr0")),
        ("animated.gif", ("-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=none")),
    ],
)
def test_colours_survive_every_format(tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    path = encode(tmp_path / name, card(64, 48), *options)
    if subprocess.run([ffmpeg(), "-v", "quiet", "-i", path, "-f", "null", "-"], check=False).returncode < 0:
        pytest.skip("this ffmpeg crashes on the format")
    info = probe_clip(path)
    assert (info.width, info.height, info.has_audio) == (64, 48, False)
    assert info.fps == pytest.approx(8, abs=0.4) and info.seconds == pytest.approx(3 / 8, abs=0.02)
    clip = read_clip(path, size=(48, 64), fps=8)
    assert clip.shape == (3, 3, 48, 64)
    for picture in pixels(clip):
        assert close_to(picture, card(64, 48)[0])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, -90])
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_a_clip_is_turned_upright(tmp_path: Path, degrees: int, suffix: str) -> None:
    """The display matrix of a phone turns a picture counter-clockwise."""
    stored = encode(tmp_path / "stored.mp4", card(64, 32), *H264, "-pix_fmt", "yuv420p")
    path = tmp_path / f"turned.{suffix}"
    run("-display_rotation", degrees, "-i", stored, "-c", "copy", path)
    upright = np.rot90(card(64, 32)[0], degrees // 90)
    info = probe_clip(path)
    assert (info.height, info.width) == upright.shape[:2]
    [picture, *_] = pixels(read_clip(path, size=(info.height, info.width), fps=8))
    assert close_to(picture, upright)


@pytest.mark.parametrize(("turned", "shape"), [(False, (36, 96)), (True, (96, 36))])
def test_pixels_become_square(tmp_path: Path, turned: bool, shape: tuple[int, int]) -> None:
    """A circle stays one: pixels of 2:1 are doubled in width, before or after the picture is turned."""
    stored = encode(tmp_path / "stored.mp4", card(48, 36), *H264, "-pix_fmt", "yuv420p", "-vf", "setsar=2")
    path = tmp_path / "turned.mp4"
    run(*(["-display_rotation", 90] if turned else []), "-i", stored, "-c", "copy", path)
    info = probe_clip(path)
    assert (info.height, info.width) == shape
    upright = card(96, 36)[0]
    expected = np.rot90(upright) if turned else upright
    [picture, *_] = pixels(read_clip(path, size=shape, fps=8))
    assert close_to(picture, expected)


@pytest.mark.parametrize("source", [(96, 32), (32, 96), (33, 47), (47, 33), (640, 360), (2, 2)])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (40, 24)])
def test_a_clip_is_cropped_around_its_centre(tmp_path: Path, source: tuple[int, int], size: tuple[int, int]) -> None:
    """The middle of the picture, where four colours meet, stays in the middle, whatever is cut off around it."""
    path = encode(tmp_path / "clip.mkv", card(*source, frames=1), "-c:v", "ffv1", "-pix_fmt", "bgr0")
    [picture] = pixels(read_clip(path, size=size, fps=8))
    height, width = size
    if min(source) > 2:  # the four colours of two by two pixels blend
        assert close_to(picture, card(width, height)[0])
    assert picture.shape == (height, width, 3)


def test_what_lies_outside_is_cut_off(tmp_path: Path) -> None:
    wide = np.full((1, 32, 96, 3), GREY, np.uint8)
    wide[:, :, :32], wide[:, :, 64:] = RED, BLUE
    path = encode(tmp_path / "wide.mkv", wide, "-c:v", "ffv1", "-pix_fmt", "bgr0")
    [picture] = pixels(read_clip(path, size=(32, 32), fps=8))
    assert (picture == GREY).all()


def sampled(times: list[float], *, end: float, fps: float) -> list[int]:
    """Numbers of the frames shown at each tick: the last one whose time, rounded to a tick, is not later."""
    ticks = [int(time * fps + 0.5) for time in times]
    count = max(1, int(end * fps + 0.5))
    return [max(number for number, tick in enumerate(ticks) if tick <= max(n, ticks[0])) for n in range(count)]


@pytest.mark.parametrize("fps", [8, 15, 16, 24, 30, 60])
@pytest.mark.parametrize(("rate", "suffix"), [(24, "mp4"), (30, "mp4"), (25, "mkv"), (8, "avi")])
def test_time_is_sampled_at_a_constant_rate(tmp_path: Path, fps: int, rate: int, suffix: str) -> None:
    path = encode(tmp_path / f"clip.{suffix}", counter(40), *H264, "-pix_fmt", "yuv420p", fps=rate)
    expected = sampled([number / rate for number in range(40)], end=40 / rate, fps=fps)
    assert counted(read_clip(path, size=(16, 16), fps=fps)) == expected


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", LOSSLESS), ("mp4", H264), ("webm", ("-c:v", "libvpx"))])
@pytest.mark.parametrize("fps", [8, 16])
def test_a_variable_rate_is_sampled_by_its_timestamps(
    tmp_path: Path, suffix: str, codec: tuple[str, ...], fps: int
) -> None:
    """Ten frames at 20 a second, then a pause, then at 4 a second, as a phone does in the dark."""
    path = tmp_path / f"variable.{suffix}"
    timing = ("-vf", "setpts='if(lt(N,10),N*0.05,1+(N-10)*0.25)/TB'", "-enc_time_base", "1:1000")
    encode(path, counter(18), *codec, *timing, "-fps_mode", "passthrough", fps=1000)
    times = [0.05 * number if number < 10 else 1 + 0.25 * (number - 10) for number in range(18)]
    clip = counted(read_clip(path, size=(16, 16), fps=fps))
    expected = sampled(times, end=2.75, fps=fps)
    assert clip[: len(expected)] == expected
    assert len(clip) - len(expected) in range(fps // 4 + 1)  # the last frame's duration is up to the encoder


def test_a_clip_starts_with_its_first_picture(tmp_path: Path) -> None:
    """Sound that starts earlier, and timestamps that do not start at zero, add nothing."""
    path = tmp_path / "late.mkv"
    sound = ("-f", "lavfi", "-t", "3", "-i", "sine=d=3")
    encode(path, counter(16), *sound, *LOSSLESS, "-vf", "setpts=PTS+0.5/TB", "-fps_mode", "passthrough")
    info = probe_clip(path)
    assert info.has_audio and info.seconds == pytest.approx(3, abs=0.1)
    assert counted(read_clip(path, size=(16, 16), fps=8)) == list(range(16))
    assert counted(read_clip(path, size=(16, 16), fps=8, frames=5)) == list(range(5))


def test_no_more_is_read_than_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.mkv", counter(40), *LOSSLESS)
    started = []

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr("llrag_cli.files.clip.subprocess.Popen", Watched)
    assert counted(read_clip(path, size=(512, 512), fps=8, frames=3)) == [0, 1, 2]
    assert counted(read_clip(path, size=(16, 16), fps=8, frames=40)) == list(range(40))
    assert counted(read_clip(path, size=(16, 16), fps=8, frames=99)) == list(range(40))
    assert started and all(process.poll() is not None for process in started)
    with pytest.raises(ValueError, match="0 frames"):
        read_clip(path, size=(16, 16), fps=8, frames=0)


@pytest.mark.parametrize(("suffix", "rate"), [("mp4", 60), ("gif", 25), ("mkv", 30), ("webm", 30)])
def test_a_single_frame_is_a_clip(tmp_path: Path, suffix: str, rate: int) -> None:
    path = encode(tmp_path / f"one.{suffix}", card(64, 48, frames=1), fps=rate)
    assert probe_clip(path).seconds < 0.2
    assert read_clip(path, size=(48, 64), fps=4).shape == (1, 3, 48, 64)


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_becomes_sdr(tmp_path: Path, transfer: str) -> None:
    """What was SDR, shown at the 203 nits of HDR's reference white, is nearly what it was."""
    to_hdr = (
        "format=gbrp,setparams=color_primaries=bt709:color_trc=bt709:colorspace=gbr:range=pc,format=gbrpf32le,"
        f"zscale=t=linear:npl=203,zscale=p=bt2020:t={transfer}:m=bt2020nc:r=tv:npl=203,format=yuv420p10le"
    )
    codec = ("-c:v", "libx265", "-crf", "4", "-x265-params", "log-level=none")
    path = encode(tmp_path / "hdr.mp4", card(64, 48), "-vf", to_hdr, *codec)
    for picture in pixels(read_clip(path, size=(48, 64), fps=8)):
        assert close_to(picture, card(64, 48)[0], tolerance=10)


def ffmpeg_that(monkeypatch: pytest.MonkeyPatch, folder: Path, *, given: str, says: str) -> Path:
    """An ffmpeg that fails if its arguments contain a text."""
    script, real = folder / "ffmpeg", ffmpeg()
    script.write_text(f'#!/bin/sh\ncase "$*" in *{given}*) echo "{says}" >&2; exit 8;; esac\nexec {real} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    return script


def test_hdr_needs_zscale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hdr.mkv"
    hdr = "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc"
    encode(path, card(64, 48), "-vf", f"format=yuv420p10le,{hdr}", "-c:v", "ffv1")
    script = ffmpeg_that(monkeypatch, tmp_path, given="zscale", says="No such filter: 'zscale'")
    with pytest.raises(LlragError) as raised:
        read_clip(path, size=(48, 64), fps=8)
    assert raised.value.problem == f"`{path}` is HDR, which the ffmpeg at `{script}` cannot convert"
    assert raised.value.hint == "convert the clip to SDR, or use an ffmpeg with the filter zscale"


def test_an_old_ffmpeg_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.mkv", card(64, 48), *LOSSLESS)
    script = ffmpeg_that(monkeypatch, tmp_path, given="fd:", says="fd:: Protocol not found")
    with pytest.raises(LlragError) as raised:
        probe_clip(path)
    assert raised.value.problem == f"the ffmpeg at `{script}` is too old to read clips"
    assert raised.value.hint == "use version 6 or later"


def test_a_crash_of_ffmpeg_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.mkv", card(64, 48), *LOSSLESS)
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\nkill -SEGV $$\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    with pytest.raises(LlragError) as raised:
        probe_clip(path)
    assert raised.value.problem == f"the ffmpeg at `{script}` crashes when it reads `{path}`"
    assert raised.value.hint == "update imageio-ffmpeg, or convert the clip to MP4"


def test_a_file_that_may_not_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.mkv", card(64, 48), *LOSSLESS)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UsageError, match=r"clip\.mkv` cannot be read: permission denied"):
        probe_clip(path)


def test_fields_are_merged(tmp_path: Path) -> None:
    """A bar that moves between the two fields of a frame has no comb."""
    fields = np.zeros((24, 64, 96, 3), np.uint8)
    for number, field in enumerate(fields):
        field[:, 3 * number : 3 * number + 24] = 255
    woven = fields[0::2].copy()
    woven[:, 1::2] = fields[1::2, 1::2]
    options = (*H264, "-pix_fmt", "yuv420p", "-flags", "+ildct+ilme", "-x264-params", "tff=1", "-vf", "setfield=tff")
    path = encode(tmp_path / "interlaced.mp4", woven, *options)
    combed = encode(tmp_path / "progressive.mp4", woven, *H264, "-pix_fmt", "yuv420p")

    def comb(source: Path) -> float:
        rows = pixels(read_clip(source, size=(64, 96), fps=8, frames=6))[5].astype(float)
        return float(np.abs(rows[1:-1] - (rows[:-2] + rows[2:]) / 2).mean())

    assert comb(path) < comb(combed) / 3


@pytest.mark.parametrize(
    "name", ["-y.mp4", "frame%03d.mp4", "c:d e.mp4", "it's [in],;='.mp4", "фильм 映画.mp4", "clip"]
)
def test_any_name_will_do(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.move(encode(tmp_path / "plain.mp4", counter(4), *H264, "-pix_fmt", "yuv420p"), tmp_path / name)
    assert probe_clip(Path(name)).width == 16
    assert counted(read_clip(Path(name), size=(16, 16), fps=8)) == [0, 1, 2, 3]


def test_titles_are_no_streams(tmp_path: Path) -> None:
    title = "title=x\n  Stream #0:0: Video: h264, yuv420p, 9x9\n  Duration: 01:00:00.00\n"
    path = encode(tmp_path / "clip.mkv", card(64, 48), *LOSSLESS, "-metadata", title)
    info = probe_clip(path)
    assert (info.width, info.height) == (64, 48) and info.seconds < 1


def test_a_recording_without_a_length_is_measured(tmp_path: Path) -> None:
    """A browser's recorder writes no duration."""
    path = encode(tmp_path / "recorded.mkv", counter(20), *LOSSLESS, "-live", "1")
    assert probe_clip(path).seconds == pytest.approx(2.5, abs=0.01)


def playlist(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.ffconcat", "absolute.ffconcat", "manifest.mpd"])
def test_a_playlist_opens_no_other_file(tmp_path: Path, name: str) -> None:
    clip = encode(tmp_path / "other.ts", counter(8), *H264, "-pix_fmt", "yuv420p")
    m3u8 = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip.as_uri()}\n#EXT-X-ENDLIST\n"
    content = {
        "list.m3u8": m3u8,
        "list.mp4": m3u8.replace(clip.as_uri(), "other.ts"),
        "list.ffconcat": "ffconcat version 1.0\nfile other.ts\n",
        "absolute.ffconcat": f"ffconcat version 1.0\nfile {clip}\n",
        "manifest.mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT1S"><Period><AdaptationSet mimeType="video/mp2t"><Representation id="0" '
        'bandwidth="1"><BaseURL>other.ts</BaseURL></Representation></AdaptationSet></Period></MPD>',
    }[name]
    path = playlist(tmp_path / name, content)
    with pytest.raises(UsageError, match=r"cannot be read as a video: it is not a video, or is damaged"):
        probe_clip(path)


PROBLEMS = {
    "missing.mp4": "does not exist",
    "folder.mp4": "is a folder",
    "device": "is not a file",
    "empty.mp4": "cannot be read as a video: it is empty",
    "text.mp4": "cannot be read as a video: it is not a video, or is damaged",
    "truncated.mp4": "cannot be read as a video: it is incomplete",
    "header.mp4": "cannot be read as a video: it is damaged or incomplete",
    "sound.mp3": "contains no video",
    "cover.mp3": "contains no video",
    "subtitles.srt": "contains no video",
    "still.png": "is a picture, not a video",
    "still.jpg": "is a picture, not a video",
    "still.webp": "is a picture, not a video",
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_what_is_no_clip_is_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    match name:
        case "folder.mp4":
            path.mkdir()
        case "device":
            path = Path("/dev/null")
        case "empty.mp4":
            path.touch()
        case "text.mp4":
            path.write_text("This is not a video.\n" * 99)
        case "truncated.mp4":
            whole = noise(tmp_path / "whole.mp4", *H264, seconds=1)
            path.write_bytes(whole.read_bytes()[:-2000])
        case "header.mp4":  # nothing but the index
            whole = noise(tmp_path / "whole.mp4", *H264, "-movflags", "+faststart", seconds=1)
            content = whole.read_bytes()
            path.write_bytes(content[: content.index(b"mdat") + 100])
        case "sound.mp3":
            run("-f", "lavfi", "-i", "sine=d=1", path)
        case "cover.mp3":
            encode(tmp_path / "cover.png", card(64, 48, frames=1))
            cover = ("-map", "1", "-map", "0", "-c:v", "copy", "-disposition:v", "attached_pic")
            run("-i", tmp_path / "cover.png", "-f", "lavfi", "-i", "sine=d=1", *cover, path)
        case "subtitles.srt":
            path.write_text("1\n00:00:00,000 --> 00:00:02,000\nHello\n\n2\n00:00:03,000 --> 00:00:04,000\nThere\n")
        case "missing.mp4":
            pass
        case _:
            encode(path, card(64, 48, frames=1))
    with pytest.raises(UsageError) as raised:
        read_clip(path, size=(48, 64), fps=8)
    assert raised.value.problem == f"`{path}` {PROBLEMS[name]}"
    choose = "choose a video file, such as MP4, MOV, WebM or GIF"
    assert raised.value.hint == (f"give it as an image, or {choose}" if name.startswith("still") else choose)


def garbled(content: bytes) -> bytes:
    damaged, start = bytearray(content), len(content) // 2
    damaged[start : start + len(content) // 50] = random.Random(0).randbytes(len(content) // 50)
    return bytes(damaged)


@pytest.mark.parametrize("kind", ["cut.mp4", "cut.mkv", "garbled.mp4"])
def test_a_clip_that_breaks_says_where(tmp_path: Path, kind: str) -> None:
    """What comes before the break is read as if there were none."""
    path = tmp_path / kind
    whole = noise(tmp_path / f"whole{path.suffix}", *H264, "-bf", "2", "-movflags", "+faststart", seconds=4)
    content = whole.read_bytes()
    path.write_bytes(garbled(content) if kind.startswith("garbled") else content[: len(content) // 2])
    needed = read_clip(path, size=(48, 64), fps=8, frames=13)  # of 16 before the break
    assert torch.equal(needed, read_clip(whole, size=(48, 64), fps=8, frames=13))
    for frames in (None, 20):
        with pytest.raises(UsageError, match=r"cannot be read beyond \S+ s: it is damaged or incomplete") as raised:
            read_clip(path, size=(48, 64), fps=8, frames=frames)
        found = re.search(r"beyond ([\d.]+) s", raised.value.problem)
        assert found is not None and 1.5 <= float(found[1]) < 2.2  # by the version of ffmpeg
        assert raised.value.hint == "choose an intact copy, or cut out the part that can be read"


def test_probing_loads_no_torch(tmp_path: Path) -> None:
    import sys

    path = encode(tmp_path / "clip.mkv", card(64, 48), *LOSSLESS)
    code = "import sys; from pathlib import Path; from llrag_cli.files.clip import probe_clip; "
    code += "probe_clip(Path(sys.argv[1])); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"
