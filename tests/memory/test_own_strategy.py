"""A memory strategy is one class and one decorator; configuration, command line and benchmark then know it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field
from torch import Tensor

from conftest import Llrag
from llrag_cli.errors import UsageError
from llrag_cli.evaluation.grid import strategy_variant
from llrag_cli.memory.candidates import Candidates
from llrag_cli.memory.strategies import STRATEGIES, RetrievalMemory, register
from llrag_cli.presets import load_config


@pytest.fixture(autouse=True)
def mine() -> Iterator[type[RetrievalMemory]]:
    """Registers a strategy for the length of a test."""
    before = dict(STRATEGIES)

    @register
    class Mine(RetrievalMemory):
        """Every other one of the latest candidates."""

        strategy: Literal["mine"] = "mine"
        stride: int = Field(default=2, gt=0, description="distance between retrieved frames")

        def choose(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
            total = len(candidates.frames)
            chosen = candidates.frames.new_tensor(range(total - 1, -1, -self.stride)[: self.retrieved])
            return candidates.with_similarities(chosen.expand(len(candidates.keys), -1))

    yield Mine
    STRATEGIES.clear()
    STRATEGIES.update(before)


def test_a_configuration_uses_it(mine: type[RetrievalMemory], tmp_path: Path) -> None:
    config = load_config("tiny", memory="mine", settings=["memory.stride=3"])
    assert isinstance(config.memory, mine)
    assert (config.label, config.memory.model_dump()["stride"]) == ("tiny mine", 3)
    assert config.memory.retrieved == load_config("tiny").memory.retrieved  # the preset's parameters stay
    file = tmp_path / "mine.yaml"
    file.write_text("backbone: {family: tiny}\nmemory: {strategy: mine, stride: 4}\n")
    assert load_config(file).memory == mine(stride=4)
    with pytest.raises(UsageError, match=r"`memory\.stride`"):
        load_config("tiny", memory="mine", settings=["memory.stride=0"])


def test_the_command_line_uses_it(llrag: Llrag, tmp_path: Path) -> None:
    few = ("--seconds", "13", "--set", "sampler.steps=[1000]", "--set", "memory.stride=1")
    done = llrag("generate", "a red circle", "--memory", "mine", *few, "--out", "run", "--json")
    assert done.returncode == 0, done.stderr
    memory = json.loads(done.stdout)["config"]["memory"]
    assert (memory["strategy"], memory["stride"]) == ("mine", 1)
    last = json.loads((tmp_path / "run/memory.jsonl").read_text().splitlines()[-1])
    newest = last["retrieved"][0]
    assert last["retrieved"] == list(range(newest, newest - 4, -1))  # the latest candidates, newest first
    again = llrag("generate", "--resume", "run")
    assert "`run` is already complete" in again.stderr  # the record is read back with the strategy


def test_it_is_listed(llrag: Llrag) -> None:
    listed = {row["strategy"]: row for row in json.loads(llrag("presets", "strategies", "--json").stdout)}
    assert listed.keys() == STRATEGIES.keys()
    assert listed["mine"]["about"] == "Every other one of the latest candidates."
    assert listed["mine"]["parameters"] == {"stride": "distance between retrieved frames (default 2)"}
    table = llrag("presets", "strategies").stdout
    assert "mine" in table and "memory.stride: distance between retrieved frames (default 2)" in table


def test_a_benchmark_uses_it(llrag: Llrag) -> None:
    settings = ["memory.stride=5", "memory.guard=0"]
    own, other = (strategy_variant(name).config("tiny", settings) for name in ("mine", "nearest"))
    assert own.memory.model_dump()["stride"] == 5
    assert "stride" not in other.memory.model_dump()  # a setting applies to the strategies that have it
    done = llrag("bench", "--memory", "none", "--memory", "mine", "--count", "2", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["videos"] for row in json.loads(done.stdout)] == [4]
