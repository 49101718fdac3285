"""llrag: long videos from text with autoregressive diffusion, kept consistent by retrieval memory.

    from llrag_cli import Pipeline

    pipeline = Pipeline.load("tiny")
    with pipeline.start("a red circle bounces around on a plain gray wall", seconds=10) as session:
        for block in session:
            print(block.start, block.retrieved, block.frames.shape)  # frames [1, t, 3, 128, 128] in [-1, 1]

Names are imported when they are first used, so importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llrag_cli.config import RunConfig as RunConfig
    from llrag_cli.engine.execution import Execution as Execution
    from llrag_cli.engine.pipeline import Pipeline as Pipeline
    from llrag_cli.engine.rollout import Block as Block
    from llrag_cli.errors import LlragError as LlragError
    from llrag_cli.errors import UsageError as UsageError
    from llrag_cli.presets import load_config as load_config
    from llrag_cli.runs.folder import RunFolder as RunFolder
    from llrag_cli.runs.maker import make_video as make_video
    from llrag_cli.runs.maker import resume_video as resume_video
    from llrag_cli.runs.record import RunRecord as RunRecord
    from llrag_cli.runs.sink import VideoSink as VideoSink
    from llrag_cli.runs.video import VideoWriter as VideoWriter
    from llrag_cli.runs.video import read_video as read_video
    from llrag_cli.world.checker import judge as judge

_PUBLIC = {
    "Block": "engine.rollout",
    "Execution": "engine.execution",
    "LlragError": "errors",
    "Pipeline": "engine.pipeline",
    "RunConfig": "config",
    "RunFolder": "runs.folder",
    "RunRecord": "runs.record",
    "UsageError": "errors",
    "VideoSink": "runs.sink",
    "VideoWriter": "runs.video",
    "judge": "world.checker",
    "load_config": "presets",
    "make_video": "runs.maker",
    "resume_video": "runs.maker",
    "read_video": "runs.video",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
