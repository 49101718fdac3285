"""Pictures, clips and finished runs that a scene uses: what they are and how many latent frames they hold.

Headers alone are read, so that a scene can be checked before any work.
"""

from __future__ import annotations

from pathlib import Path

from llrag_cli.config import RunConfig
from llrag_cli.errors import UsageError
from llrag_cli.files.durable import require_own
from llrag_cli.files.headers import read_header

LATENTS = "latents.safetensors"  # of a run
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


def is_run(path: Path) -> bool:
    """Whether a path is used as the folder of a run."""
    return path.is_dir()


def is_picture(path: Path) -> bool:
    """Whether a file is used as a picture, by its name."""
    return path.suffix.lower() in PICTURES


def latent_frames_of(path: Path, config: RunConfig) -> int:
    """Latent frames of a picture (1), a clip at the backbone's frame rate, or a finished run.

    Raises ``UsageError`` for what cannot be read, and for a run whose latents are not those of the backbone.
    """
    if is_run(path):
        return _of_run(path, config)
    if is_picture(path):
        from llrag_cli.files.image import open_image

        open_image(path)
        return 1
    from llrag_cli.files.clip import probe_clip

    space = config.latent_space
    frames = int(round(probe_clip(path).seconds * config.backbone.fps, 3))
    return 1 + max(0, frames - 1) // space.temporal_ratio


def _of_run(folder: Path, config: RunConfig) -> int:
    file = folder / LATENTS
    for each in (folder / "run.json", file):
        require_own(each)
    if not (folder / "run.json").is_file() or not file.is_file():
        raise UsageError(
            f"`{folder}` is not a run: it has no `run.json` and `{LATENTS}`",
            hint="a reference is a picture, a clip, or the folder of a finished run",
        )
    try:
        frames, *shape = read_header(file, whole=False).entries["latents"].shape
    except (OSError, ValueError, KeyError):
        raise UsageError(f"`{file}` cannot be read", hint="is the run finished and undamaged?") from None
    wanted = [config.backbone.height, config.backbone.width]
    if shape[1:] != wanted:
        raise UsageError(
            f"the run `{folder}` has latents of {'x'.join(map(str, shape[1:]))}, but `{config.name}` writes "
            f"{'x'.join(map(str, wanted))}",
            hint="use a run of the same family of backbones, at the same size",
        )
    if frames <= 0:
        raise UsageError(f"the run `{folder}` is not finished", hint="resume it to its end first")
    return frames
