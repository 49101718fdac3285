"""``llrag doctor --card``: which options make a backbone fit a GPU that need not be here."""

from __future__ import annotations

import json

import pytest

from conftest import Llrag


@pytest.mark.parametrize(
    ("card", "chosen"),
    [
        ("24GB", "none"),
        ("16GB", "--share-buffers values"),
        ("15GB", "--share-buffers all"),
        ("13GB", "--share-buffers all --quantize int8 --compile"),
        ("12GB", "--decoder tiny --share-buffers values"),
        ("11GB", "--decoder tiny --share-buffers all"),
        ("8GB", "--decoder tiny --share-buffers all --offload"),
        ("4GB", None),
    ],
)
def test_the_cheapest_options_that_fit_are_named(llrag: Llrag, card: str, chosen: str | None) -> None:
    done = llrag("doctor", "--card", card, "--backbone", "self-forcing", "--json")
    shown = json.loads(done.stdout)
    assert shown["chosen"] == chosen
    plans = {plan["options"]: plan for plan in shown["plans"]}
    plain, values, shared = (
        plans[options]["device_bytes"] for options in ("none", "--share-buffers values", "--share-buffers all")
    )
    assert plain - shared == pytest.approx(29 * 12 * 9.585e6, rel=0.01)  # the buffers of all layers but one
    assert plain - values == values - shared
    int8 = plans["--share-buffers all --quantize int8 --compile"]
    assert shared - int8["device_bytes"] == pytest.approx(30 * (8 * 1536**2 + 2 * 1536 * 8960), rel=0.01)
    assert int8["cost"] == "the context is gathered in every pass; layers in eight bits, and a slow start"
    assert plans["none"]["cost"] == "" and "weights cross" in plans["--share-buffers all --offload"]["cost"]


def test_the_table_says_what_the_options_cost(llrag: Llrag) -> None:
    done = llrag("doctor", "--card", "12GB", "--backbone", "self-forcing")
    assert "the cheapest that fits: --decoder tiny --share-buffers values" in done.stdout
    assert "does not fit" in done.stdout and "gathered in" in done.stdout


def test_a_card_alone_is_no_plan(llrag: Llrag) -> None:
    done = llrag("doctor", "--card", "12GB")
    assert done.returncode == 2
    assert "`--card` needs a backbone" in done.stderr
    done = llrag("doctor", "--card", "much", "--backbone", "self-forcing")
    assert done.returncode == 2
