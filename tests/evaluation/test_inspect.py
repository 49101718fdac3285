"""The memory map: numbers of known logs, a real run, and folders that are none."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from conftest import Llrag
from llrag_cli.evaluation.inspect import example_blocks, memory_stats
from llrag_cli.presets import load_config
from llrag_cli.runs.folder import BlockMemory, RunFolder, memory_line, read_run
from runs.records import record_of

SETTINGS = ["memory.window=6", "memory.retrieved=2", "memory.guard=1"]
CONFIG = load_config("tiny", settings=SETTINGS)  # 8 frames a second
LOG = [  # frames 1 .. start - 7 can be retrieved
    BlockMemory(0, (), ()),
    BlockMemory(3, (), ()),
    BlockMemory(6, (), ()),
    BlockMemory(9, (1, 2), (0.9, 0.8)),
    BlockMemory(12, (2, 5), (0.7, 0.6)),
    BlockMemory(15, (2, 1), (0.9, 0.5)),
]


def test_numbers_of_a_known_log() -> None:
    stats = memory_stats(LOG, CONFIG)
    assert stats is not None
    assert (stats.blocks, stats.retrieving) == (6, 3)
    assert stats.coverage == pytest.approx(3 / 8)  # 1, 2 and 5, of 1 .. 8
    assert stats.repeated == pytest.approx(2 / 4)  # 2 after 2, twice
    assert stats.most_retrieved[0] == (1.0, 3)
    assert stats.lookback == pytest.approx(4.0)  # of 8, 7, 10, 7, 13 and 14 frames, the lower middle is 8
    assert stats.near_guard == pytest.approx(1.0)
    assert stats.similarity == pytest.approx(0.7)


def test_nothing_retrieved_has_no_statistics() -> None:
    assert memory_stats(LOG[:3], CONFIG) is None
    assert example_blocks(LOG[:3]) == []


def test_example_blocks_end_with_the_last_block() -> None:
    blocks = [BlockMemory(3 * number, (1,), (0.5,)) for number in range(100)]
    shown = example_blocks(blocks, 6)
    assert len(shown) == 6 and shown[-1] is blocks[-1]
    assert len(example_blocks(blocks[:2], 6)) == 2


def test_a_run_is_mapped(llrag: Llrag, tmp_path: Path) -> None:
    done = llrag("generate", "a red circle", "--seconds", "14", "--set", "sampler.steps=[1000, 500]", "--out", "run")
    assert done.returncode == 0, done.stderr
    told = llrag("inspect", "run")
    assert told.returncode == 0, told.stderr
    assert "of which 5 retrieved frames" in told.stdout
    assert told.stdout.endswith("run/memory.png\nrun/memory.html\n")
    assert (tmp_path / "run/memory.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "run/memory.html").read_text(encoding="utf-8")
    assert "a red circle" in page and "Every block" in page and "://" not in page
    with (tmp_path / "run/memory.jsonl").open("a") as file:
        file.write('{"block": 99, "fra')  # killed in the middle of a line
    again = json.loads(llrag("inspect", "run", "--out", "elsewhere", "--json").stdout)
    assert again["files"] == ["elsewhere/memory.png", "elsewhere/memory.html"]
    assert again["retrieving"] == 5


def test_a_run_without_memory_retrieves_nothing(llrag: Llrag) -> None:
    llrag("generate", "a red circle", "--seconds", "2", "--no-rag", "--out", "run")
    told = llrag("inspect", "run")
    assert told.returncode == 0, told.stderr
    assert "nothing: the plain sliding window" in told.stdout


RECORD = record_of("none")
OTHER = json.dumps(json.loads(RECORD.to_json()) | {"fps": 0})


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "no run folder `run`"),
        ({}, "`run` is not a run folder: it has no run.json"),
        ({"run.json": "{}"}, "`run/run.json` is damaged"),
        ({"run.json": RECORD.to_json()}, "it has no memory.jsonl"),
        ({"run.json": "{half", "memory.jsonl": ""}, "`run/run.json` is damaged"),
        ({"run.json": "{}", "memory.jsonl": ""}, "`run/run.json` is damaged"),
        ({"run.json": OTHER, "memory.jsonl": ""}, "`fps`: input should be greater than or equal to 1"),
        ({"run.json": RECORD.to_json(), "memory.jsonl": "{no\n"}, "`run/memory.jsonl` is damaged"),
        ({"run.json": RECORD.to_json(), "memory.jsonl": '{"frame": 1}\n'}, "`run/memory.jsonl` is damaged"),
    ],
)
def test_folders_that_are_no_runs(llrag: Llrag, tmp_path: Path, files: dict[str, str] | None, said: str) -> None:
    if files is not None:
        (tmp_path / "run").mkdir()
        for name, text in files.items():
            (tmp_path / "run" / name).write_text(text)
    done = llrag("inspect", "run")
    assert done.returncode in (1, 2)
    assert said in done.stderr and "hint: " in done.stderr


def test_a_memory_log_is_read_back(tmp_path: Path) -> None:
    folder, blocks = RunFolder(tmp_path), (BlockMemory(0), BlockMemory(3, (2, 1), (0.5, 0.25)))
    folder.write_record(RECORD)
    folder.memory.write_text('{"block": 0, "frame": 0, "retrieved": [3], "similarities": [0.5]}\n')
    assert read_run(folder) == (RECORD, (BlockMemory(0, (3,), (0.5,)),))
    blocks = (BlockMemory(0), BlockMemory(3, (2, 1), (0.5, 0.25)))
    folder.memory.write_bytes(b"".join(memory_line(number, block) for number, block in enumerate(blocks)))
    assert read_run(folder) == (RECORD, blocks)


def test_a_full_disk_leaves_the_earlier_files(llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = llrag("generate", "a red circle", "--seconds", "2", "--set", "sampler.steps=[1000]", "--out", "run")
    assert done.returncode == 0, done.stderr
    files = [tmp_path / "run/memory.png", tmp_path / "run/memory.html"]
    for file in files:
        file.write_text("earlier")
    write = os.write

    def half(number: int, content: bytes) -> int:
        if len(content) < 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(number, content[: len(content) // 2])

    monkeypatch.setattr("llrag_cli.files.durable.os.write", half)
    told = llrag("inspect", "run")
    assert told.returncode == 1
    assert "error: `run/memory.png` could not be written: no space left on device" in told.stderr
    assert [file.read_text() for file in files] == ["earlier", "earlier"]
    assert not list(tmp_path.rglob("*.partial"))
