"""What a scene will hold in memory, by its timeline alone."""

from __future__ import annotations

from pathlib import Path

from llrag_cli.presets import load_config
from llrag_cli.scenes.needs import memory_needs
from llrag_cli.scenes.timeline import ReferenceSpan, one_shot


def test_every_take_needs_as_much_as_one() -> None:
    config = load_config("self-forcing", memory="nearest")
    timeline = one_shot("a fox", config, latent_frames=30)
    one, three = memory_needs(config, timeline), memory_needs(config, timeline, takes=3)
    assert three == {part: 3 * size for part, size in one.items()}
    page = 2 * 30 * (60 * 104 // 4) * 1536 * 2  # keys and values of a frame, bfloat16, in 30 layers of 12 heads of 128
    window = config.memory.window
    assert window is not None
    assert one == {
        "K/V of the window": 2 * window * page,
        "archive of K/V": 30 * page,
        "latents on disk": 30 * 16 * 60 * 104 * 2,
    }
    references = (
        ReferenceSpan(name="near", path=Path("near.png"), latent_frames=1, pinned=True),
        ReferenceSpan(name="far", path=Path("far.mp4"), latent_frames=4),
    )
    with_references = memory_needs(config, timeline.model_copy(update={"references": references}))
    assert with_references == one | {"archive of K/V": 35 * page, "pinned references": page}
