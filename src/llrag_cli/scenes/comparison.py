"""A scene generated twice, with retrieval and without: what the second one is, and whether the two can differ."""

from __future__ import annotations

from llrag_cli.errors import UsageError
from llrag_cli.memory.strategies import MemoryConfig, RetrievalMemory
from llrag_cli.scenes.replay import Replay
from llrag_cli.scenes.schema import Remember, Scene
from llrag_cli.scenes.timeline import Timeline


def native_scene(scene: Scene) -> Scene:
    """A scene as the plain window generates it: without the references that could only be retrieved.

    ``remember`` keeps its shots, which decide about the sink; pinned references are attended to without retrieval.
    """
    dropped = {name for name, reference in scene.references.items() if not reference.pinned}
    if not dropped:
        return scene
    content = scene.model_dump()
    content["references"] = {name: each for name, each in content["references"].items() if name not in dropped}
    for shot in content["shots"]:
        shot["remember"] = _without(shot["remember"], dropped)
    return Scene.model_validate(content)


def _without(remember: Remember, names: set[str]) -> Remember:
    if isinstance(remember, str):
        return remember
    return tuple(name for name in remember if name not in names) or "none"


def require_retrieval(memory: MemoryConfig, timeline: Timeline) -> None:
    """Raise ``UsageError`` unless a block can retrieve a frame; otherwise both videos would be the same."""
    if not isinstance(memory, RetrievalMemory) or not memory.retrieves:
        raise UsageError(
            f"the memory strategy `{memory.strategy}` retrieves nothing, so there is nothing to compare",
            hint="choose another one in the scene, for example `memory: nearest`, and `memory.retrieved` above 0",
        )
    replay = Replay(memory, timeline)
    for shot in timeline.shots:
        generated = shot.blocks[shot.given_blocks :]
        if generated and replay.candidates(generated[-1]):  # the last block can retrieve what those before it could
            return
    raise UsageError(
        "no shot of the scene can retrieve anything, so there is nothing to compare",
        hint="a shot after a cut retrieves from the shots that it remembers, for example `remember: [arrival]`",
    )
