"""Properties of the loop, on a small backbone with random weights."""

from __future__ import annotations

import pytest
import torch

from conftest import Write, latents_of
from llrag_cli.config import RECALLS, MemoryConfig, Recall
from llrag_cli.memory.context import recallable
from llrag_cli.memory.history import average_pool
from llrag_cli.models.wan.transformer import WanBackbone

NATIVE = MemoryConfig(policy="native", window=6, sink=1)
RECALLING = MemoryConfig(policy="retrieval", window=8, sink=1, retrieved=3, guard=1)


@pytest.mark.parametrize("memory", [NATIVE, RECALLING])
def test_same_seed_same_bytes(write: Write, memory: MemoryConfig) -> None:
    first, second = latents_of(write(memory)), latents_of(write(memory))
    assert first.numpy().tobytes() == second.numpy().tobytes()
    assert not torch.equal(first, latents_of(write(memory, seed=1)))


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("memory", [NATIVE, RECALLING])
def test_a_video_does_not_depend_on_its_batch(write: Write, memory: MemoryConfig, block: int) -> None:
    together = write(memory, batch=3, frames=21, block=block)
    alone = write(memory, samples=(2,), frames=21, block=block)
    torch.testing.assert_close(latents_of(together)[2:], latents_of(alone), atol=1e-4, rtol=1e-4)
    assert [block.recalled[2:] for block in together] == [block.recalled for block in alone]


def test_videos_of_a_batch_recall_their_own_frames(write: Write) -> None:
    blocks = write(RECALLING, batch=3, frames=48)
    assert any(len({tuple(row) for row in block.recalled}) > 1 for block in blocks)


def test_the_order_of_a_batch_is_irrelevant(write: Write) -> None:
    forward, backward = write(RECALLING, samples=(0, 1, 2)), write(RECALLING, samples=(2, 1, 0))
    torch.testing.assert_close(latents_of(forward), latents_of(backward).flip(0), atol=1e-4, rtol=1e-4)


def test_native_is_the_plain_window_bit_for_bit(write: Write) -> None:
    """Whatever keys are kept and however many frames are there to recall, the plain window does not change."""

    def other_keys(latents: torch.Tensor) -> torch.Tensor:
        return latents.flatten(1)[:, :7] - 3

    plain = latents_of(write(NATIVE, encode=average_pool))
    assert torch.equal(plain, latents_of(write(NATIVE, encode=other_keys)))
    assert torch.equal(plain, latents_of(write(MemoryConfig(policy="native", window=6, sink=1, guard=3))))


def test_a_window_that_never_fills_is_no_window(write: Write) -> None:
    wide = MemoryConfig(policy="native", window=30, sink=1)
    endless = MemoryConfig(policy="native", window=None, sink=1)
    assert torch.equal(latents_of(write(wide, frames=15)), latents_of(write(endless, frames=15)))


def test_without_memory_retrieval_is_native_until_the_window_rolls(write: Write) -> None:
    native = latents_of(write(MemoryConfig(policy="native", window=9, sink=1), frames=15))
    none = latents_of(write(MemoryConfig(policy="retrieval", window=9, sink=1), frames=15))
    assert torch.equal(native[:, :9], none[:, :9])
    assert not torch.equal(native[:, 9:], none[:, 9:])


def test_what_is_recalled_changes_the_video(write: Write) -> None:
    recalled = latents_of(write(RECALLING, frames=30))
    blind = latents_of(write(RECALLING.model_copy(update={"guard": 100}), frames=30))
    assert torch.equal(recalled[:, :9], blind[:, :9])
    assert not torch.allclose(recalled[:, 15:], blind[:, 15:], atol=1e-3)


@pytest.mark.parametrize("recall", RECALLS)
def test_every_policy_recalls_what_it_may_for_each_video_alone(write: Write, recall: Recall) -> None:
    memory = RECALLING.model_copy(update={"recall": recall, "gate": 0.5})
    together, alone = write(memory, batch=3, frames=30), write(memory, samples=(2,), frames=30)
    torch.testing.assert_close(latents_of(together)[2:], latents_of(alone), atol=1e-4, rtol=1e-4)
    for block in together:
        pool = recallable(start=block.start, window=8, sink=1, guard=1)
        matched = len(pool) - (3 if recall == "successor" else 0)  # what follows the newest ones is no candidate
        assert all(len(row) == max(0, min(3, matched)) and set(row) <= set(pool) for row in block.recalled)
        assert len(block.recalled) == (3 if pool else 0)


def test_policies_differ(write: Write) -> None:
    chosen = {
        recall: tuple(map(tuple, write(RECALLING.model_copy(update={"recall": recall}), frames=36)[-1].recalled))
        for recall in RECALLS
        if recall != "gate"
    }
    assert len(set(chosen.values())) == len(chosen)
    assert chosen["deep-sink"] == ((1, 2, 3),)


def test_random_recall_is_the_seed_s(write: Write) -> None:
    memory = RECALLING.model_copy(update={"recall": "random"})
    first, again, other = (write(memory, frames=36, seed=seed) for seed in (0, 0, 1))
    assert [block.recalled for block in first] == [block.recalled for block in again]
    assert [block.recalled for block in first] != [block.recalled for block in other]


@pytest.mark.parametrize("sink", [0, 1, 2, 3])
@pytest.mark.parametrize("window", [4, 5, 7, 12])
def test_any_window_and_sink_run(write: Write, window: int, sink: int) -> None:
    memory = MemoryConfig(policy="native", window=window, sink=sink)
    assert latents_of(write(memory, frames=15, block=1 if window - sink < 3 else 3)).isfinite().all()


@pytest.mark.parametrize("retrieved", [4, 5, 6])
def test_a_local_part_shorter_than_the_block_runs(write: Write, retrieved: int) -> None:
    memory = MemoryConfig(policy="retrieval", window=8, sink=1, retrieved=retrieved, guard=0)
    assert latents_of(write(memory, frames=18)).isfinite().all()


def test_the_cache_holds_no_more_than_the_window(backbone: WanBackbone, write: Write) -> None:
    write(NATIVE, frames=60)
    layer = backbone._self_attention[0].cache
    assert layer is not None
    assert layer.pages._keys is not None
    assert layer.pages._keys.shape[1] == 6


def test_recalled_frames_obey_the_guard(write: Write) -> None:
    for block in write(RECALLING, frames=60):
        newest = block.start - 8 + 1 - 1 - 1  # start - window + sink - guard - 1
        assert all(1 <= frame <= newest for row in block.recalled for frame in row)
