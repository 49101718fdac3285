"""Damaged and hostile files end in one sentence with a hint, quickly, and change nothing."""

from __future__ import annotations

import os

import pytest

from attacks.cases import ATTACKS
from attacks.harness import Attack, Outcome, run_attacks
from attacks.makers import RUNS
from conftest import call_llrag

CHOSEN = [attack for attack in ATTACKS if attack.name.startswith(tuple(os.environ.get("ATTACKS", "").split("|")))]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """How each attack ended. They share one finished run, of which some have a damaged copy."""
    RUNS.folder = tmp_path_factory.mktemp("run") / "run"
    settings = ["sampler.steps=[1000]", "memory.window=6", "memory.retrieved=2", "memory.guard=1"]
    done = call_llrag(
        RUNS.folder.parent,
        *("generate", "a red circle", "--seconds", "6", "--out", "run"),
        *(word for setting in settings for word in ("--set", setting)),
    )
    assert done.returncode == 0, done.stderr
    for lock in RUNS.folder.glob("run.*k"):
        lock.unlink()
    assert call_llrag(RUNS.folder.parent, "inspect", "run", "--out", "shown").returncode == 0  # undamaged, it is read
    return run_attacks(tmp_path_factory.mktemp("attacks"), CHOSEN)


@pytest.mark.parametrize("attack", CHOSEN, ids=lambda attack: attack.name)
def test_an_attack_ends_in_a_sentence(outcomes: dict[str, Outcome], attack: Attack) -> None:
    outcome = outcomes[attack.name]
    assert outcome.problems(attack) == [], outcome.stderr
