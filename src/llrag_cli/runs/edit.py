"""The shots of a video as an OpenTimelineIO timeline, which editing programs import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llrag_cli.errors import MissingOpenTimelineIOError
from llrag_cli.files.durable import replace_text
from llrag_cli.runs.export import ShotFile

LARGEST = 2**63 - 1  # integer in a timeline


def require_opentimelineio() -> None:
    """Raise an error unless the package is installed."""
    try:
        import opentimelineio  # noqa: F401
    except ImportError:
        raise MissingOpenTimelineIOError from None


def write_otio(target: Path, files: Sequence[ShotFile], *, name: str, fps: int, seed: int) -> None:
    """Write a timeline of shot files that are in the same folder: one video track, one clip per shot.

    Media are referred to by file name alone, so that the folder can be moved. Each clip starts with a marker that
    holds its prompt; ``metadata["llrag"]`` says what the shot was made with. ``seed`` is that of the run.
    """
    require_opentimelineio()
    from opentimelineio import adapters, opentime, schema

    def frames(start: int, count: int) -> opentime.TimeRange:
        return opentime.TimeRange(opentime.RationalTime(start, fps), opentime.RationalTime(count, fps))

    timeline = schema.Timeline(name=name, global_start_time=opentime.RationalTime(0, fps))
    timeline.metadata["llrag"] = {"seed": _integer(seed), "fps": fps}
    track = schema.Track(name="V1", kind=schema.TrackKind.Video)
    timeline.tracks.append(track)
    for file in files:
        shot, whole = file.shot, frames(0, len(file.frames))
        about = {
            "shot": shot.name,
            "prompt": shot.prompt,
            "kind": shot.kind,
            "seed": _integer(seed if shot.seed is None else shot.seed),
            "remember": shot.remember if isinstance(shot.remember, str) else list(shot.remember),
            "first_frame": file.frames.start,
            "complete": file.is_complete,
        }
        clip = schema.Clip(
            name=shot.name,
            media_reference=schema.ExternalReference(target_url=file.name, available_range=whole),
            source_range=whole,
            metadata={"llrag": about},
        )
        marker = schema.Marker(name=shot.name, marked_range=frames(0, 1), color=schema.MarkerColor.GREEN)
        marker.comment = shot.prompt
        clip.markers.append(marker)
        track.append(clip)
    replace_text(target, adapters.write_to_string(timeline, "otio_json") + "\n")


def _integer(value: int) -> int | str:
    """A seed as a timeline can hold it: the largest ones as text."""
    return value if value <= LARGEST else str(value)
