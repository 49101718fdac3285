"""What ``llrag export`` gives, for download."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Literal

from llrag_cli.runs.edit import require_opentimelineio, write_otio
from llrag_cli.runs.export import count_frames, export_chapters, export_shot, shot_files
from llrag_cli.serve.problems import ApiError
from llrag_cli.serve.queue import Video

Format = Literal["zip", "otio", "mp4"]
MEDIA_TYPES: dict[Format, str] = {"zip": "application/zip", "otio": "application/json", "mp4": "video/mp4"}


def export(video: Video, folder: Path, form: Format) -> Path:
    """Write a file into a folder: the timeline alone, the video with chapters, or both and the shots in a zip."""
    record = video.view.record
    if record is None or not video.view.video_bytes:
        raise ApiError(409, "the video has no frames yet", code="no_frames")
    path, timeline = video.view.folder.video, record.timeline
    written = min(count_frames(path), timeline.video_frames)
    files = [file for file in shot_files(timeline, frames_written=written) if file.frames]
    whole, edit = folder / "video.mp4", folder / "timeline.otio"
    if form != "mp4":
        require_opentimelineio()
        write_otio(edit, files, name=video.id, fps=timeline.fps, seed=record.seed)
        if form == "otio":
            return edit
    export_chapters(path, timeline, whole, frames_written=written)
    if form == "mp4":
        return whole
    target = folder / "export.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:  # mp4 does not become smaller
        archive.write(whole, whole.name)
        archive.write(edit, edit.name)
        for file in files:
            archive.write(export_shot(whole, file, folder, fps=timeline.fps), file.name)
    return target
