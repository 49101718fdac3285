"""An upload is decoded here, in a process of its own with limits, and written again: ``python -m`` this module.

Arguments: the file, a folder for the result, the kinds that are accepted, and of clips width, height, frame rate (0:
their own) and the most frames. Prints a line of JSON: ``path`` and ``kind``, or ``problem`` and ``hint``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llrag_cli.errors import LlragError, UsageError
from llrag_cli.files.clip import probe_clip, rewrite_clip
from llrag_cli.files.image import LargePictureError, open_image

LONGEST_SIDE = 1280  # pixels, where no size is asked for
FASTEST = 30.0  # frames per second, where no rate is asked for
LIMITS = {"RLIMIT_AS": 6 * 2**30, "RLIMIT_CPU": 120, "RLIMIT_FSIZE": 2 * 2**30, "RLIMIT_CORE": 0, "RLIMIT_NOFILE": 64}


def limit() -> None:
    """Bound what this process, and the ffmpeg it starts, may use."""
    if sys.platform == "win32":
        return
    import resource

    for name, most in LIMITS.items():
        resource.setrlimit(getattr(resource, name), (most, most))


def decode(file: Path, folder: Path, *, kinds: str, size: tuple[int, int], fps: float, frames: int) -> dict[str, str]:
    """Write a picture as PNG, a clip as mp4; returns where, and what it is."""
    if "picture" in kinds:
        try:
            picture = open_image(file)
        except LargePictureError:
            raise
        except UsageError:
            if "clip" not in kinds:
                raise UsageError("the file is not a picture", hint="send a PNG, JPEG or WebP file") from None
        else:
            target = folder / "upload.png"
            picture.save(target)
            return {"path": str(target), "kind": "picture"}
    width, height = size
    info = probe_clip(file)
    if not width or not height:
        scale = min(1.0, LONGEST_SIDE / max(info.width, info.height, 1))
        width, height = (max(2, 2 * round(scale * side / 2)) for side in (info.width, info.height))
    target = folder / "upload.mp4"
    rewrite_clip(file, target, size=(height, width), fps=fps or min(FASTEST, info.fps or FASTEST), frames=frames)
    return {"path": str(target), "kind": "clip"}


def main(arguments: list[str]) -> None:
    """Decode the file of a command line, and print the result."""
    limit()
    file, folder, kinds, width, height, fps, frames = arguments
    try:
        found = decode(
            Path(file), Path(folder), kinds=kinds, size=(int(width), int(height)), fps=float(fps), frames=int(frames)
        )
    except LlragError as error:
        found = {"problem": error.problem.replace(f"`{file}`", "the file"), "hint": error.hint}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
