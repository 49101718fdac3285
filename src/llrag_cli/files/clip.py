"""A clip from a video file, in the shape of a video's frames."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.ffmpeg import Watch, ffmpeg, file_url, run_ffmpeg

if TYPE_CHECKING:
    from torch import Tensor

HINT = "choose a video file, such as MP4, MOV, WebM or GIF"
# The file is ffmpeg's standard input: its name needs no escaping, and it can open no other, as a playlist would.
INPUT = ("-hide_banner", "-nostdin", "-protocol_whitelist", "fd", "-fd", "0", "-i", "fd:")
CUT_OFF = "File ended prematurely"  # of Matroska and WebM, which is no error to ffmpeg
SCALING = "lanczos+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact"
TO_SDR = (  # SDR white of 203 nits (BT.2408) stays white, and what is brighter is compressed
    "format=yuv444p10le,zscale=t=linear:npl=203,format=gbrpf32le,zscale=p=bt709,tonemap=mobius:param=0.7,"
    "zscale=t=bt709:m=gbr:r=full,format=gbrp"
)


@dataclass(frozen=True)
class ClipInfo:
    """What the header of a video file says."""

    width: int  # pixels of an upright picture of square pixels
    height: int
    seconds: float  # of the whole file, in which sound may outlast the picture
    fps: float  # average of a variable rate
    has_audio: bool


@dataclass(frozen=True)
class _Header:
    """``ClipInfo``, and what decoding depends on."""

    info: ClipInfo
    stream: int  # index of the video stream
    interlaced: bool
    hdr: bool


@dataclass(frozen=True)
class _Decoded:
    """Pictures, uint8 [H, W, 3] each; if ``broken``, an error stopped ffmpeg, which logged it."""

    pictures: list[Tensor]
    broken: bool
    log: str


def probe_clip(path: Path) -> ClipInfo:
    """Size, length and rate of a clip, by the header of its file; a file without video is a ``UsageError``."""
    return _read_header(path).info


def read_clip(path: Path, *, size: tuple[int, int], fps: float, frames: int | None = None) -> Tensor:
    """The frames [T, 3, H, W] in [-1, 1] of a clip, upright, scaled and cropped around their centre to ``size`` (H, W).

    Frame n is the one shown at n / ``fps`` seconds, to the nearest frame. At most ``frames`` are read; T is smaller
    if the clip is shorter. A file that breaks off or is damaged before is a ``UsageError``. HDR becomes SDR.
    """
    import torch

    if frames is not None and frames < 1:
        raise ValueError(f"{frames} frames cannot be read")
    header = _read_header(path)
    decoded = _decode(path, header, size=size, fps=fps, frames=frames, strict=True)
    if decoded.broken and frames is not None and _intact(path, header, seconds=frames / fps):
        again = _decode(path, header, size=size, fps=fps, frames=frames, strict=False)
        decoded = _Decoded(again.pictures, broken=len(again.pictures) < frames, log=decoded.log)
    if not decoded.broken and not decoded.pictures:  # shorter than half a frame
        decoded = _decode(path, header, size=size, fps=fps, frames=frames, strict=True, ending="pass")
    if decoded.broken or not decoded.pictures:
        seconds = header.info.seconds if frames is None else frames / fps
        if CUT_OFF in decoded.log:
            seconds = min(seconds, len(decoded.pictures) / fps)
        raise _broken_clip(path, header, seconds=seconds, log=decoded.log)
    clip = torch.empty(len(decoded.pictures), 3, *size)
    for frame, picture in zip(clip, decoded.pictures, strict=True):
        frame.copy_(picture.permute(2, 0, 1)).div_(127.5).sub_(1)  # [3, H, W]
    return clip


def _read_header(path: Path) -> _Header:
    """Parse what ffmpeg prints about a file."""
    if not path.exists():
        raise UsageError(f"`{path}` does not exist", hint=HINT)
    if not path.is_file():
        raise UsageError(f"`{path}` is {'a folder' if path.is_dir() else 'not a file'}", hint=HINT)
    text = _run(path, [], []).stderr
    if (opened := re.search(r"^Input #0, (\S+), from ", text, re.MULTILINE)) is None:
        raise UsageError(f"`{path}` cannot be read as a video: {_unreadable(path, text)}", hint=HINT)
    if opened[1].endswith("_pipe") or re.search(r"^ +major_brand +: (heic|heix|mif1|avif)", text, re.MULTILINE):
        raise UsageError(f"`{path}` is a picture, not a video", hint=f"give it as an image, or {HINT}")
    streams = re.split(r"^  (?=Stream #0:)", text[opened.end() :], flags=re.MULTILINE)[1:]
    kinds = [_kind(stream) for stream in streams]
    if "Video" not in kinds:
        raise UsageError(f"`{path}` contains no video", hint=HINT)
    index = kinds.index("Video")
    video = streams[index]
    if (size := re.search(r", (\d+)x(\d+)\b", video)) is None:
        reason = _unreadable(path, text)
        raise UsageError(f"`{path}` cannot be read as a video: {reason}", hint=HINT)
    aspect = re.search(r"\bSAR (\d+):(\d+)", video)
    turned = re.search(r"display ?matrix: rotation of (-?[\d.]+)", video, re.IGNORECASE)
    length = re.search(r"^  Duration: (\d+):(\d+):([\d.]+)", text, re.MULTILINE)
    rate = re.search(r"([\d.]+)(k?) fps", video) or re.search(r"([\d.]+)(k?) tbr", video)
    seconds = 3600 * int(length[1]) + 60 * int(length[2]) + float(length[3]) if length else _scan_seconds(path, index)
    width, height = round(int(size[1]) * (int(aspect[1]) / int(aspect[2]) if aspect else 1)), int(size[2])
    if turned and abs(float(turned[1]) % 180 - 90) < 1:
        width, height = height, width
    return _Header(
        info=ClipInfo(
            width=width,
            height=height,
            seconds=seconds,
            fps=float(rate[1]) * (1000 if rate[2] else 1) if rate else 0.0,
            has_audio="Audio" in kinds,
        ),
        stream=index,
        interlaced=re.search(r"\b(top|bottom) (coded )?first\b", video) is not None,
        hdr=re.search(r"\b(smpte2084|arib-std-b67)\b", video) is not None,
    )


def _kind(stream: str) -> str:
    """``Video``, ``Audio`` or another kind of stream; a cover picture is no video."""
    heading = stream.splitlines()[0]
    named = re.match(r"Stream #0:\d+[^:]*: (\w+): ", heading)
    still = heading.rstrip().endswith(("(attached pic)", "(timed thumbnails)"))
    return "" if named is None or still else named[1]


def _unreadable(path: Path, log: str) -> str:
    """Why ffmpeg cannot open a file."""
    if "Protocol not found" in log:
        raise LlragError(f"the ffmpeg at `{ffmpeg()}` is too old to read clips", hint="use version 6 or later")
    if path.stat().st_size == 0:
        return "it is empty"
    if "moov atom not found" in log or "End of file" in log:
        return "it is incomplete"
    return "it is not a video, or is damaged"


def _scan_seconds(path: Path, stream: int) -> float:
    """The length of a video stream by its packets, where the header does not state it, as in a browser's recording."""
    table = _run(path, [], ["-map", f"0:{stream}", "-c", "copy", "-f", "framecrc", "-"]).stdout
    unit = re.search(r"^#tb 0: (\d+)/(\d+)", table, re.MULTILINE)
    packets = re.findall(r"^0, +(-?\d+), +-?\d+, +(\d+),", table, re.MULTILINE)  # decoding time, duration
    if unit is None or not packets:
        return 0.0
    ticks = int(packets[-1][0]) + int(packets[-1][1]) - int(packets[0][0])
    return ticks * int(unit[1]) / int(unit[2])


def _decode(
    path: Path,
    header: _Header,
    *,
    size: tuple[int, int],
    fps: float,
    frames: int | None,
    strict: bool,
    ending: Literal["round", "pass"] = "round",
) -> _Decoded:
    """At most ``frames`` pictures of a clip, whose length is rounded, or with ``pass`` rounded up, to whole frames.

    If ``strict``, ffmpeg stops at any error, even at one in the second or so that it reads ahead; otherwise at none.
    """
    import torch

    height, width = size
    filters = _filters(header, size=size, fps=fps, ending=ending)
    command = [
        *(ffmpeg(), "-v", "error", *(["-xerror"] if strict else []), *INPUT, "-map", f"0:{header.stream}"),
        *("-vf", ",".join(filters), "-fps_mode", "passthrough", "-f", "rawvideo", "-"),
    ]
    pictures: list[Tensor] = []
    broken = False
    with (
        _open(path) as file,
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdin=file, stdout=subprocess.PIPE, stderr=log) as process,
    ):
        assert process.stdout is not None
        watch = Watch(process)
        try:
            while frames is None or len(pictures) < frames:
                content = bytearray(height * width * 3)
                with watch:
                    read = process.stdout.readinto(content)  # type: ignore[attr-defined]
                if read < len(content):
                    with watch:
                        broken = process.wait() != 0 or CUT_OFF in _text(log)
                    if watch.late:
                        raise LlragError(f"`{path}` could not be read: {watch.death}", hint=HINT)
                    break
                pictures.append(torch.frombuffer(content, dtype=torch.uint8).view(height, width, 3))
        finally:
            process.kill()
        return _Decoded(pictures, broken, _text(log))


def _filters(header: _Header, *, size: tuple[int, int], fps: float, ending: Literal["round", "pass"]) -> list[str]:
    """What ffmpeg does to the pictures of a clip."""
    height, width = size
    return [
        *(["bwdif=mode=send_frame:deint=interlaced"] if header.interlaced else []),
        f"setpts=PTS-STARTPTS,fps=fps={fps}:eof_action={ending}",
        f"scale=w='trunc(max({width},{height}*iw*sar/ih)+0.5)':h='trunc(max({height},{width}*ih/(iw*sar))+0.5)'"
        f":flags={SCALING}",
        *([TO_SDR] if header.hdr else []),
        f"format=rgb24,crop={width}:{height}",
    ]


def rewrite_clip(path: Path, target: Path, *, size: tuple[int, int], fps: float, frames: int) -> None:
    """Write the frames that ``read_clip`` would read into an mp4 without loss, so that only this process decodes the
    original. A file that is damaged, or no video, is a ``UsageError``.
    """
    header = _read_header(path)
    encode = ("-c:v", "libx264rgb", "-crf", "0", "-preset", "veryfast", "-pix_fmt", "rgb24", "-f", "mp4")
    filters = ",".join(_filters(header, size=size, fps=fps, ending="round"))
    output = [
        "-map",
        f"0:{header.stream}",
        "-an",
        "-vf",
        filters,
        "-frames:v",
        str(frames),
        *encode,
        "-y",
        file_url(target),
    ]
    done = _run(path, ["-v", "error", "-xerror"], [*output, file_url(target)])
    if done.returncode or not target.is_file():
        raise _broken_clip(path, header, seconds=header.info.seconds, log=done.stderr)


def _text(log: IO[bytes]) -> str:
    """All of a log file."""
    log.seek(0)
    return log.read().decode(errors="replace")


def _intact(path: Path, header: _Header, *, seconds: float) -> bool:
    """Whether the first ``seconds`` of a clip have no errors.

    Reading and decoding are checked apart, since the former runs ahead of the latter.
    """
    limit, stream = ("-t", f"{seconds:.6f}"), ("-map", f"0:{header.stream}", "-f", "null")
    readable = _run(path, ["-xerror", *limit], [*stream, "-c", "copy", "-"]).returncode == 0
    return readable and _run(path, ["-xerror", *limit, "-fflags", "+discardcorrupt"], [*stream, "-"]).returncode == 0


def _broken_clip(path: Path, header: _Header, *, seconds: float, log: str) -> LlragError:
    """The error of a clip that cannot be decoded, or not as far as ``seconds``."""
    if "No such filter: 'zscale'" in log:
        return LlragError(
            f"`{path}` is HDR, which the ffmpeg at `{ffmpeg()}` cannot convert",
            hint="convert the clip to SDR, or use an ffmpeg with the filter zscale",
        )
    intact, broken = 0.0, seconds
    while broken - intact > 0.05:
        middle = (intact + broken) / 2
        intact, broken = (middle, broken) if _intact(path, header, seconds=middle) else (intact, middle)
    if intact == 0:
        return UsageError(f"`{path}` cannot be read as a video: it is damaged or incomplete", hint=HINT)
    return UsageError(
        f"`{path}` cannot be read beyond {intact:.1f} s: it is damaged or incomplete",
        hint="choose an intact copy, or cut out the part that can be read",
    )


def _run(path: Path, options: list[str], output: list[str]) -> subprocess.CompletedProcess[str]:
    """What ffmpeg makes of a file, read with ``options``; a crash is an ``LlragError``."""
    with _open(path) as file:
        done = run_ffmpeg([*options, *INPUT, *output], reading=path, stdin=file)
    if done.returncode < 0:  # as that of imageio-ffmpeg 0.6 for Linux does at any MPEG-TS
        raise LlragError(
            f"the ffmpeg at `{ffmpeg()}` crashes when it reads `{path}`",
            hint="update imageio-ffmpeg, or convert the clip to MP4",
        )
    return done


def _open(path: Path) -> IO[bytes]:
    """A file to be read by ffmpeg."""
    try:
        return path.open("rb")
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"`{path}` cannot be read: {reason}", hint=HINT) from None
