"""What a study of leaving and returning makes: three shots, five conditions. Importing this does not import torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llrag_cli.config import RunConfig
from llrag_cli.evaluation.study_plan import Key, Pool, Step, require_counts, require_memory_of_sprites, weights_digests
from llrag_cli.scenes.schema import Remember, Shot
from llrag_cli.scenes.schema import Scene as ShotList
from llrag_cli.scenes.timeline import Timeline, plan_timeline

SCHEMA = 1
GIVEN = ("A", "B")  # shots that all conditions share, and that are judged as well
SECONDS = (8.0, 4.0, 5.0)  # of A, B and C


@dataclass(frozen=True)
class Condition:
    """What shot C may remember."""

    name: str
    remember: Remember
    about: str
    strategy: str | None = None  # instead of the configuration's


CONDITIONS: Mapping[str, Condition] = {
    condition.name: condition
    for condition in (
        Condition("memory", ("A",), "frames of A, by the memory strategy"),
        Condition("random", ("A",), "random frames of A", "random"),
        Condition("all", "all", "frames of A and B, by the memory strategy"),
        Condition("wrong", ("B",), "frames of B, the wrong place"),
        Condition("none", "none", "nothing"),
    )
}


@dataclass(frozen=True)
class Plan:
    """What a study makes; it is written down, and a study continues only under the same plan."""

    pool: Pool
    scenes: int
    seeds: int
    config: RunConfig

    def __post_init__(self) -> None:
        require_counts(self.scenes, self.seeds)
        require_memory_of_sprites(self.config, judged="leaving and returning is")

    @property
    def settings(self) -> dict[str, Any]:
        """What has to agree; the weights of the model are part of it."""
        return {
            "schema": SCHEMA,
            "pool": self.pool,
            "scenes": self.scenes,
            "seeds": self.seeds,
            "seconds": list(SECONDS),
            "config": self.config.model_dump(mode="json"),
            "weights": weights_digests(self.config),
        }

    def row_keys(self) -> Iterator[Key]:
        """All rows."""
        for scene in range(1, self.scenes + 1):
            for shot in (*GIVEN, *CONDITIONS):
                for seed in range(self.seeds):
                    yield scene, seed, shot

    def steps(self, missing: Collection[Key]) -> list[Step]:
        """What rows take that are missing. Shots A and B are needed for all, also if they have rows."""
        shots = timeline(self.config, ("A", "B", "C"), remember="none").shots
        first, second, last = (len(shot.blocks) * self.config.backbone.frames_per_block for shot in shots)
        videos = len({key[:2] for key in missing})
        rows = {shot: sum(key[2] == shot for key in missing) for shot in (*GIVEN, *CONDITIONS)}
        steps = [
            Step("A", "the place", videos, videos * first, 0, rows["A"]),
            Step("B", "another place", videos, videos * second, 0, rows["B"]),
        ]
        steps += [
            Step(name, f"C remembers {condition.about}", count, count * last, count * (first + second), count)
            for name, condition in CONDITIONS.items()
            if (count := rows[name])
        ]
        return steps if missing else []


def timeline(config: RunConfig, prompts: tuple[str, str, str], *, remember: Remember) -> Timeline:
    """The three shots, of which the last may remember the shots named; both cuts drop the sink."""
    first, second, last = prompts
    shots = (
        Shot(name="A", prompt=first, seconds=SECONDS[0]),
        Shot(name="B", prompt=second, seconds=SECONDS[1], cut=True, remember="none", sink="drop"),
        Shot(name="C", prompt=last, seconds=SECONDS[2], cut=True, remember=remember, sink="drop"),
    )
    return plan_timeline(ShotList(shots=shots), config)
