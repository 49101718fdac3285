"""Committed blocks are read back; what lies beyond them is cut off; changes are detected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from llrag_cli.errors import LlragError
from llrag_cli.runs.commits import VideoMark
from llrag_cli.runs.folder import BlockMemory, RunFolder
from llrag_cli.runs.journal import Committed, Journal, read_committed

SHAPE = (2, 2, 3)
MADE = torch.randn(1, 12, *SHAPE, generator=torch.Generator().manual_seed(0))


def memory(index: int) -> BlockMemory:
    return BlockMemory(3 * index, (1, index), (0.5, 0.25))


def latents(index: int) -> Tensor:
    return MADE[:, 3 * index : 3 * index + 3]


def keep(
    folder: Path, *, blocks: range, committed: Committed | None = None, dtype: torch.dtype = torch.float32
) -> None:
    journal = Journal(RunFolder(folder), shape=SHAPE, dtype=dtype, committed=committed)
    for index in blocks:
        journal.commit(memory(index), latents(index).to(dtype), VideoMark())
    journal.close()


def committed(folder: Path, dtype: torch.dtype = torch.float32) -> Committed:
    return read_committed(RunFolder(folder), shape=SHAPE, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_committed_is_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    keep(tmp_path, blocks=range(4), dtype=dtype)
    found = committed(tmp_path, dtype)
    assert (found.blocks, found.memory) == (4, tuple(map(memory, range(4))))
    assert torch.equal(found.latents, MADE.to(dtype))  # type: ignore[arg-type]
    assert torch.equal(load_file(tmp_path / "latents.safetensors")["latents"], MADE[0].to(dtype))


def test_a_resumed_journal_writes_the_same_files(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    keep(tmp_path / "whole", blocks=range(4))
    keep(tmp_path / "parts", blocks=range(2))
    for name, junk in (("latents.safetensors", b"abc"), ("memory.jsonl", b'{"block"'), ("commits.jsonl", b'{"blo')):
        with (tmp_path / "parts" / name).open("ab") as file:
            file.write(junk)
    keep(tmp_path / "parts", blocks=range(2, 4), committed=committed(tmp_path / "parts"))
    for name in ("latents.safetensors", "memory.jsonl", "commits.jsonl"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_nothing_is_committed_before_the_first_block(tmp_path: Path) -> None:
    assert committed(tmp_path) == Committed()
    keep(tmp_path, blocks=range(0))
    assert committed(tmp_path) == Committed()
    assert load_file(tmp_path / "latents.safetensors")["latents"].shape == (0, *SHAPE)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["latents.safetensors", "memory.jsonl", "commits.jsonl"]),
    place=st.floats(0, 1, exclude_max=True),
    how=st.sampled_from(["cut", "flip", "drop", "remove"]),
)
def test_damage_is_detected_or_costs_blocks_but_is_never_read_as_data(
    tmp_path: Path, name: str, place: float, how: str
) -> None:
    keep(tmp_path, blocks=range(3))
    file = tmp_path / name
    content = bytearray(file.read_bytes())
    at = int(place * len(content))
    if how == "cut":
        del content[at:]
    elif how == "flip":
        content[at] ^= 0x11
    else:
        del content[at : at + 7]
    file.write_bytes(content)
    if how == "remove":
        file.unlink()
    try:
        found = committed(tmp_path)
    except LlragError:
        return
    if found.latents is not None:
        assert torch.equal(found.latents, MADE[:, : found.latents.shape[1]])
    assert found.memory == tuple(map(memory, range(3)))[: found.blocks]


@pytest.mark.parametrize("torn", [b"\0" * 40, b"\0" * 40 + b"48}}\n", b'{"block": 3, "fr\0\0\0}}\n'])
def test_zeros_of_a_power_cut_are_no_commit(tmp_path: Path, torn: bytes) -> None:
    """A file may have grown before its content was on disk; a line across two pages may have its end alone."""
    keep(tmp_path, blocks=range(3))
    with (tmp_path / "commits.jsonl").open("ab") as file:
        file.write(torn)
    found = committed(tmp_path)
    assert found.blocks == 3
    keep(tmp_path, blocks=range(3, 4), committed=found)
    assert committed(tmp_path).blocks == 4 and b"\0" not in (tmp_path / "commits.jsonl").read_bytes()


@pytest.mark.parametrize("field", ["frames", "memory_bytes"])
def test_a_commit_of_nothing_is_damage(tmp_path: Path, field: str) -> None:
    keep(tmp_path, blocks=range(3))
    lines = [json.loads(line) for line in (tmp_path / "commits.jsonl").read_text().splitlines()]
    lines[2][field] = lines[1][field]
    (tmp_path / "commits.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(LlragError, match=r"commits\.jsonl` is damaged: its lines are out of order"):
        committed(tmp_path)


def test_blocks_of_a_single_frame_are_read_back(tmp_path: Path) -> None:
    journal = Journal(RunFolder(tmp_path), shape=SHAPE, dtype=torch.float32, committed=None)
    for index in range(2):
        journal.commit(BlockMemory(index), MADE[:, index : index + 1], VideoMark())
    journal.close()
    found = committed(tmp_path)
    assert found.blocks == 2 and torch.equal(found.latents, MADE[:, :2])  # type: ignore[arg-type]


def test_zeros_in_earlier_lines_are_damage(tmp_path: Path) -> None:
    keep(tmp_path, blocks=range(3))
    content = (tmp_path / "commits.jsonl").read_bytes()
    (tmp_path / "commits.jsonl").write_bytes(b"\0" + content[1:])
    with pytest.raises(LlragError, match=r"commits\.jsonl` is damaged: it has a line that is not a commit"):
        committed(tmp_path)
