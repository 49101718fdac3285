from __future__ import annotations

import torch

from llrag_cli.memory.candidates import cosine_similarities, top
from llrag_cli.memory.history import GrowingTensor, History, average_pool


def test_growth_keeps_what_was_there_and_moves_rarely() -> None:
    growing, places = GrowingTensor(), set()
    expected = torch.randn(2, 300, 3)
    for start in range(0, 300, 3):
        growing.append(expected[:, start : start + 3])
        places.add(growing.filled.data_ptr())
    assert torch.equal(growing.filled, expected)
    assert len(growing) == 300
    assert len(places) <= 4  # 64, 128, 256, 512


def test_room_that_is_asked_for_is_made_once() -> None:
    growing, places = GrowingTensor(300), set()
    assert growing.bytes == 0
    for _ in range(100):
        growing.append(torch.zeros(2, 3, 5))
        places.add(growing.filled.data_ptr())
    assert len(places) == 1
    assert growing.bytes == 2 * 300 * 5 * 4


def test_room_doubles_when_it_is_full() -> None:
    growing, room = GrowingTensor(4), []
    for _ in range(9):
        growing.append(torch.ones(1, 1, dtype=torch.uint8))
        room.append(growing.bytes)
    assert room == [4, 4, 4, 4, 8, 8, 8, 8, 16] and len(growing) == growing.filled.sum() == 9


def test_keys_are_unit() -> None:
    history = History(average_pool)
    latents = torch.randn(2, 6, 4, 3, 5)
    history.append(latents[:, :3])
    history.append(latents[:, 3:])
    assert len(history) == 6
    torch.testing.assert_close(history.keys.norm(dim=-1), torch.ones(2, 6))


def test_a_repeated_frame_is_retrieved() -> None:
    history = History(average_pool)
    latents = torch.randn(1, 30, 4, 3, 5)
    latents[:, 29] = 2.5 * latents[:, 8]  # brighter, the same direction
    history.append(latents)
    keys = history.keys
    frames, similarities = top(cosine_similarities(keys[:, -1], keys[:, :18]), 3)
    assert frames[0, 0] == 8
    torch.testing.assert_close(similarities[0, 0], torch.tensor(1.0))
