"""llrag: long videos from text with autoregressive diffusion, kept consistent by retrieval memory.

    from llrag_cli import Pipeline, load_config

    pipeline = Pipeline.load(load_config("tiny", method="retrieval"))
    for block in pipeline.blocks(["a red circle bounces around on a plain gray wall"], seconds=10):
        frames = pipeline.decoder.decode(block.latents)  # [1, t, 3, 64, 64] in [-1, 1]

Names are imported when they are first used, so importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llrag_cli.config import RunConfig as RunConfig
    from llrag_cli.errors import LlragError as LlragError
    from llrag_cli.errors import UsageError as UsageError
    from llrag_cli.files.run import RunFolder as RunFolder
    from llrag_cli.files.video import VideoSink as VideoSink
    from llrag_cli.files.video import VideoWriter as VideoWriter
    from llrag_cli.files.video import read_video as read_video
    from llrag_cli.pipeline import Execution as Execution
    from llrag_cli.pipeline import Pipeline as Pipeline
    from llrag_cli.presets import load_config as load_config
    from llrag_cli.rollout import Block as Block
    from llrag_cli.runner import make_video as make_video
    from llrag_cli.runner import resume_video as resume_video
    from llrag_cli.tiny.checker import judge as judge

_PUBLIC = {
    "Block": "rollout",
    "Execution": "pipeline",
    "LlragError": "errors",
    "Pipeline": "pipeline",
    "RunConfig": "config",
    "RunFolder": "files.run",
    "UsageError": "errors",
    "VideoSink": "files.video",
    "VideoWriter": "files.video",
    "judge": "tiny.checker",
    "load_config": "presets",
    "make_video": "runner",
    "resume_video": "runner",
    "read_video": "files.video",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
