"""What the control groups of a process leave it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llrag_cli.files.resources import _group_room


def group(folder: Path, limit: str, used: int, dropped: int = 0, *, names: tuple[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {dropped}\n")


TWO = ("memory.max", "memory.current")
ONE = ("memory.limit_in_bytes", "memory.usage_in_bytes")


def test_the_tightest_group_of_version_2_counts(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/outer/inner\n")
    group(tmp_path / "outer", "1000", 700, 100, names=TWO)
    group(tmp_path / "outer/inner", "max", 500, names=TWO)
    assert _group_room(tmp_path, membership) == 400
    group(tmp_path / "outer/inner", "600", 500, names=TWO)
    assert _group_room(tmp_path, membership) == 100
    group(tmp_path / "outer/inner", "600", 900, names=TWO)
    assert _group_room(tmp_path, membership) == 0


@pytest.mark.parametrize(("limit", "room"), [("1000", 300), (str(2**63 - 4096), None)])
def test_version_1_has_a_folder_for_memory(tmp_path: Path, limit: str, room: int | None) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("5:cpu:/x\n4:memory,hugetlb:/a\n")
    group(tmp_path / "memory/a", limit, 700, names=ONE)
    assert _group_room(tmp_path, membership) == room


def test_no_group_no_limit(tmp_path: Path) -> None:
    assert _group_room(tmp_path, tmp_path / "nothing") is None
    (tmp_path / "cgroup").write_text("0::/\n")
    assert _group_room(tmp_path, tmp_path / "cgroup") is None
