"""Contexts, rotation, and the pages of the window."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llrag_cli.cache.archive import new_archive
from llrag_cli.cache.context import Context
from llrag_cli.cache.kv import KEYS, VALUES, FramePages
from llrag_cli.cache.rotary import RotaryTables, rotate
from llrag_cli.cache.tiers import Tier


def test_a_context_counts_its_frames() -> None:
    assert Context((0, 4), (0, 4), 5).retrieved_count == 0
    assert Context((0, 4), (0, 4), 5).frame_count == 2
    both = Context((0, 4), (0, 4), 5, retrieved=((1, 2, 3), (2, 3, 4)), retrieved_times=((0, 0, 0), (1, 1, 1)))
    assert (both.retrieved_count, both.frame_count) == (3, 5)
    assert both.hidden == range(0)


@pytest.mark.parametrize("compiling", [False, True])
def test_pairs_of_channels_turn_by_the_angles_of_their_time(
    monkeypatch: pytest.MonkeyPatch, *, compiling: bool
) -> None:
    """At frame 3, row 1 and column 1 of a head of 12 channels: two pairs turn with time, two with row and column."""
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: compiling)
    table = RotaryTables(12).table(torch.tensor([3.0]), height=2, width=2)
    x = torch.randn(1, 4, 1, 12, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, table[None])[0, 3, 0].view(6, 2)
    angles = torch.tensor([3.0, 3.0 * 100.0**-1, 1.0, 0.01, 1.0, 0.01])
    pairs = x[0, 3, 0].view(6, 2)
    expected = torch.stack(
        (
            pairs[:, 0] * angles.cos() - pairs[:, 1] * angles.sin(),
            pairs[:, 0] * angles.sin() + pairs[:, 1] * angles.cos(),
        ),
        dim=-1,
    )
    torch.testing.assert_close(turned, expected)


def test_pages_of_a_ring_with_sink_references_and_pins() -> None:
    pages = FramePages(sink=2, ring=6, frames=100, references=5, pinned=2)
    assert pages.count == 8
    numbers = [0, 1, 2, 5, 6, 9, -1, -2, -3]
    assert [pages.page(number) for number in numbers] == [0, 1, 2, 5, 2, 5, 7, 6, 5]
    pages.sink_start = 6
    assert [pages.page(number) for number in (6, 7, 8, 9)] == [0, 1, 4, 5]
    assert FramePages(sink=2, ring=6, frames=4).count == 4
    assert FramePages(sink=2, ring=6, frames=4, references=1).count == 6
    endless = FramePages(sink=2, ring=None, frames=4, references=3)
    assert endless.count == 7 and [endless.page(number) for number in (-3, 0, 3)] == [0, 3, 6]


@pytest.mark.parametrize("tier", ["host", "disk"])
def test_a_page_that_was_written_again_is_copied_again(tmp_path: Path, tier: Tier) -> None:
    """As when the prompt changes: what is in a slot of the old page may not be read."""
    archive = new_archive(tier, retrieved=2, frames=6, folder=tmp_path)
    assert archive is not None

    def write(start: int, value: float) -> None:
        page = torch.full((1, 1, 4, 1, 2), value)
        archive.write(start, torch.zeros(1, 3, 4, 2, 2), 1, lambda layer, frame: (page, page + 0.5))

    def read(frames: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        archive.fetch([frames], lambda *_: [])
        keys, values = (torch.cat(archive.read(0, kind, 0, frames), dim=1) for kind in (KEYS, VALUES))
        return keys, values

    write(0, 1.0)
    write(3, 2.0)
    keys, values = read([2, 3])
    assert keys[0, :, 0, 0, 0].tolist() == [1, 2] and values[0, :, 0, 0, 0].tolist() == [1.5, 2.5]
    assert archive.moved == 2
    read([3, 2])
    assert archive.moved == 2  # both are there
    write(3, 7.0)
    assert read([2, 3])[0][0, :, 0, 0, 0].tolist() == [1, 7]
    assert archive.moved == 3
    assert archive.pool_bytes == 6 * 2 * 64  # keys and values of a frame take one aligned part each
    archive.close()
