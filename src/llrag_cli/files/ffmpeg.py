"""Where ffmpeg is, and how files are named to it."""

from __future__ import annotations

from pathlib import Path

from llrag_cli.errors import LlragError


def file_url(path: str | Path) -> str:
    """A path as ffmpeg takes it, for reading and writing.

    It is absolute and names the protocol: the colon of a relative ``pink:7/video.mp4`` would end the name of a
    protocol, and a leading dash would make it an option.
    """
    return f"file:{Path(path).absolute()}"


def ffmpeg() -> str:
    """Path of the ffmpeg program."""
    import imageio_ffmpeg

    try:
        executable: str = imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        raise LlragError(
            "ffmpeg not found", hint="reinstall imageio-ffmpeg, or set the variable IMAGEIO_FFMPEG_EXE to its path"
        ) from None
    if not Path(executable).exists() and "/" in executable:
        raise LlragError(f"ffmpeg not found at `{executable}`", hint="correct or unset the variable IMAGEIO_FFMPEG_EXE")
    return executable
