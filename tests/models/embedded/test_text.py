from __future__ import annotations

import torch

from llrag_cli.models.embedded.text import TinyText
from llrag_cli.models.embedded.vocabulary import CONCEPTS, tokenize


def ids(text: str) -> list[int]:
    return tokenize(text, limit=24)[0]


def test_synonyms_share_an_id() -> None:
    assert ids("A crimson disc, bouncing!") == ids("a red circle bounces")


def test_unknown_words_are_named_once_and_left_out() -> None:
    known, unknown = tokenize("a red dragon and a Dragon of fire", limit=24)
    assert unknown == ["dragon", "Dragon", "fire"]
    assert known == ids("a red and a of")


def test_no_word_has_two_meanings() -> None:
    words = [word for _, line in CONCEPTS for word in line.split()]
    assert len(words) == len(set(words))


def test_rows_after_the_words_are_zero_and_order_matters() -> None:
    torch.manual_seed(0)
    text = TinyText().eval()
    prompts = ["a red circle and a blue square", "a blue circle and a red square", ""]
    with torch.no_grad():
        rows = text(text.pad([ids(prompt) for prompt in prompts]))
    assert (rows[:2, 7:] == 0).all()
    assert (rows[2] == 0).all()
    assert not torch.allclose(rows[0, :7].sum(0), rows[1, :7].sum(0), atol=1e-3)


def test_a_long_prompt_is_cut() -> None:
    assert len(tokenize("red " * 100, limit=24)[0]) == 24
