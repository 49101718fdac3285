"""Files that clients send: each is decoded by a process of its own, and only what that has written is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from llrag_cli.config import RunConfig
from llrag_cli.serve.plans import Upload
from llrag_cli.serve.problems import ApiError

Kind = Literal["picture", "clip"]
PATIENCE = 180.0  # seconds
PIECE = 1 << 20
KEPT = (
    "PATH",
    "PYTHONPATH",
    "IMAGEIO_FFMPEG_EXE",
    "LD_LIBRARY_PATH",
    "SYSTEMROOT",
    "TEMP",
    "TMPDIR",
)  # of the environment
MOST_FRAMES = 20_000  # of a clip whose use is not known yet


@contextmanager
def decoded(
    file: BinaryIO, *, param: str, kinds: Sequence[Kind], config: RunConfig | None = None, seconds: float | None = None
) -> Iterator[Upload]:
    """A file that was sent, decoded; it is gone when the block ends. Raises ``ApiError`` if it cannot be used.

    With a configuration, a clip has the size and the frame rate of its videos, and is at most so many seconds long.
    """
    with tempfile.TemporaryDirectory(prefix="llrag-upload-") as name:
        folder = Path(name)
        sent = folder / "sent"
        with sent.open("wb") as target:
            file.seek(0)
            while piece := file.read(PIECE):
                target.write(piece)
        if not sent.stat().st_size:
            raise ApiError(400, f"the file `{param}` is empty", code="invalid_file", param=param)
        size, fps, frames = (0, 0), 0, MOST_FRAMES
        if config is not None:
            size, fps = (config.width, config.height), config.backbone.fps
            frames = MOST_FRAMES if seconds is None else int(seconds * fps) + 1
        yield _run([sent, folder, ",".join(kinds), *size, fps, frames], param)


def _run(arguments: Sequence[object], param: str) -> Upload:
    command = [sys.executable, "-m", "llrag_cli.serve.decoding", *map(str, arguments)]
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    problem, hint = "it could not be decoded", "send a PNG, JPEG or WebP picture, or an MP4, MOV or WebM clip"
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=PATIENCE, check=False, env=environment, stdin=subprocess.DEVNULL
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        problem = "it takes too long to decode"
    except (ValueError, IndexError):  # it was ended by its limits
        pass
    else:
        if "path" in found:
            return Upload(Path(found["path"]), found["kind"])
        problem, hint = found["problem"], found["hint"]
    raise ApiError(400, f"the file `{param}` cannot be used: {problem}", code="invalid_file", param=param, hint=hint)
