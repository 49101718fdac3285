"""What a video will hold in memory, from its timeline and the shapes of the models: an estimate without any model."""

from __future__ import annotations

from llrag_cli.config import EMBEDDED_SHAPE, ModelShape, RunConfig
from llrag_cli.scenes.timeline import Timeline


def memory_needs(config: RunConfig, timeline: Timeline, *, takes: int = 1) -> dict[str, int]:
    """Bytes that the keys and values of a scene, and its files of latents, take; weights are not counted."""
    embedded = config.backbone.family == "tiny"
    shape = EMBEDDED_SHAPE if embedded else ModelShape()
    item = 4 if embedded else 2  # bytes of a number: float32, or bfloat16 on a GPU
    tokens = config.backbone.height * config.backbone.width // (shape.patch_size[1] * shape.patch_size[2])
    frame = 2 * tokens * shape.num_attention_heads * shape.attention_head_dim * shape.num_layers * item * takes
    frames = timeline.latent_frames + timeline.reference_count
    window = frames if config.memory.window is None else min(frames, config.memory.window)
    latent = shape.in_channels * config.backbone.height * config.backbone.width * item * takes
    needs = {"K/V of the window": 2 * window * frame}
    if config.memory.retrieves:
        needs["archive of K/V"] = frames * frame
    if timeline.pinned_frames:
        needs["pinned references"] = timeline.pinned_frames * frame
    return needs | {"latents on disk": timeline.latent_frames * latent}
