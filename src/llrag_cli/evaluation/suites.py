"""Benchmarks with a name: grids of backbones, memories and lengths that belong together."""

from __future__ import annotations

from dataclasses import dataclass

from llrag_cli.errors import UsageError, closest


@dataclass(frozen=True)
class Suite:
    """What a named benchmark compares where nothing else is asked for, and what was published on it."""

    backbones: tuple[str, ...]
    memories: tuple[str, ...]  # the first is the baseline
    horizons: tuple[float, ...]  # seconds
    prompts: int
    published: str  # a paragraph for the report


SUITES = {
    "paper": Suite(
        backbones=("tiny-causal-forcing", "tiny-self-forcing", "tiny-longlive"),
        memories=("none", "nearest"),
        horizons=(30.0, 60.0, 120.0),
        prompts=8,
        published=(
            "LongLive-RAG (Hu et al. 2026) reports, for 60 s, 128 prompts of MovieGenBench, the metrics of "
            "VBench-Long and Wan2.1-1.3B with Causal-Forcing, Self-Forcing and LongLive, an average rank among "
            "five methods of 2.00 to 2.33 with retrieval and of 3.8 to 4.8 with the native window. Here two "
            "methods are ranked, so that 1 is the best average rank and 2 the worst; the metrics are those that "
            "this report names; and the backbones are small models of a world of sprites. Compare the direction, "
            "not the numbers."
        ),
    ),
}


def find_suite(name: str) -> Suite:
    """The suite of a name. Raises ``UsageError`` for an unknown one."""
    if name not in SUITES:
        raise UsageError(f"unknown suite `{name}`", hint=closest(name, SUITES))
    return SUITES[name]
