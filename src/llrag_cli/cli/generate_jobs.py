"""``llrag generate --prompts`` on several workers: each video is a job of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from llrag_cli.batch.jobs import PipelineSpec, VideoJob, generate_video
from llrag_cli.cli import console
from llrag_cli.cli.gather import gather, require_all

if TYPE_CHECKING:
    from llrag_cli.batch.executors import Engine
    from llrag_cli.config import RunConfig
    from llrag_cli.engine.execution import Execution
    from llrag_cli.runs.folder import RunFolder


def run_jobs(
    engine: Engine,
    config: RunConfig,
    texts: Sequence[str],
    folders: Sequence[RunFolder],
    seconds: float,
    seed: int,
    image: Path | None,
    *,
    device: str,
    dtype: str,
    how: Execution,
    force: bool,
    title: str,
    as_json: bool,
) -> None:
    """Generate videos as jobs of an engine."""
    if force:
        for folder in folders:
            with folder.lock():
                folder.clear()
    spec = PipelineSpec(config, device, dtype, how, tuple(texts))
    picture = None if image is None else image.resolve()
    jobs = [
        VideoJob(spec, text, folder.path.resolve(), seconds, seed, picture)
        for text, folder in zip(texts, folders, strict=True)
    ]
    blocks = config.latent_frames(seconds) // config.backbone.frames_per_block
    outcomes = gather(
        engine,
        generate_video,
        jobs,
        title=title,
        total=len(jobs) * blocks,
        completed=lambda _: sum(min(blocks, folder.blocks_committed()) for folder in folders),
    )
    finished = [(folders[outcome.number], outcome.result) for outcome in outcomes if outcome.result is not None]
    if as_json:
        console.result_json(
            [
                {"folder": str(folder.path), "video": str(folder.video), **record.model_dump(mode="json")}
                for folder, record in finished
            ]
        )
    else:
        for folder, _ in finished:
            console.result(str(folder.video))
    require_all(outcomes, [folder.path.name for folder in folders])
