"""The tables of measurements in docs/ are those that the CSV files beside them give."""

from __future__ import annotations

import csv
import importlib.util
import random
from pathlib import Path
from types import ModuleType

import pytest

from llrag_cli.evaluation.encoder.rows import COLUMNS
from llrag_cli.evaluation.returning.plan import AGAIN
from llrag_cli.evaluation.returning.report import MEASURES

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_tables", DOCS / "write_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_table_is_that_of_its_file(tables: ModuleType) -> None:
    found = 0
    for page in DOCS.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        for table in tables.TABLE.finditer(text):
            assert table[0] == f"{table[1]}\n{tables.made(table[2].split())}\n\n{table[3]}", (page.name, table[2])
            found += 1
    assert found


def test_a_table_of_returning_scenes(tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Identity of `k2` is above that of `nearest` in all of 12 scenes; lines of parts are left out."""
    rng = random.Random(0)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["scene", "seed", "condition", "from_second", "to_second", *MEASURES, "retrieved_of_a"])
        for scene in range(1, 13):
            for name, identity in ((AGAIN, 0.9), ("native", 0.5), ("nearest", 0.5), ("k2", 0.7)):
                other = [f"{rng.uniform(0.4, 0.6):.4f}" for _ in MEASURES]
                other[list(MEASURES).index("identity")] = f"{identity + 0.001 * scene:.4f}"
                spans = [("", "")] if name == AGAIN else [("0", "30"), ("0", "10"), ("10", "20")]
                for place, (start, stop) in enumerate(spans):
                    values = other if place == 0 else ["0.0000"] * len(MEASURES)
                    writer.writerow([scene, 0, name, start, stop, *values, "0.5000" if name == "k2" else ""])
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    lines = tables.made(["returning", "rows.csv", "k2"]).splitlines()
    assert lines[0] == "|  | colour | identity | size error | wall tint | presence | retrieved from A |"
    (row,) = [line for line in lines if line.startswith("| `k2` |")]
    assert row.split(" | ")[2] == "0.71 [0.70, 0.71]" and row.endswith("| 0.50 |")
    (gap,) = [line for line in lines if line.startswith("| `k2` - `nearest` |")]
    assert gap.split(" | ")[2] == "+0.20 [+0.20, +0.20]"  # stands the correction: no mark


def test_a_table_of_encoders_weights_videos_by_their_queries(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [",".join(COLUMNS)]
    for keys, recalls in (("average pooling", (0.1, 0.2)), ("embedded encoder", (0.5, 1.0))):
        for video, (recall, queries) in enumerate(zip(recalls, (1, 3), strict=True), start=1):
            lines.append(f"\"objects differ in colours, steady light: 2 videos\",{keys},{video},4,0.25,{queries},"
                         f"{recall},0.5,1,0.9,0.8,7.5")  # fmt: skip
    (tmp_path / "encoders.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    made = tables.made(["encoders", "encoders.csv"]).splitlines()
    assert made[3] == (
        "| colours, steady light | embedded encoder | 0.875 [0.50, 1.00] | 0.500 | 1.000 | 0.900 | 0.800 | 25 % | 7.5 |"
    )
    assert made[-1] == "| colours, steady light | embedded encoder - average pooling | +0.700 [+0.40, +0.80] |"


def test_a_table_of_panoramas_pairs_videos(tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stretches a video; a stretch without a judgement is left out."""
    lines = ["memory,prompt,seed,from_second,to_second,color,identity,returns,background,tint,visible"]
    for memory, identity in (("native window", 0.25), ("random", 0.25), ("successor, encoder", 0.5)):
        for prompt in range(10):
            for start, extra in ((20, 0.1), (30, -0.1)):
                lines.append(f'"{memory}",{prompt},0,{start},{start + 10},0.5,{identity + extra},,1,0.05,1')
    (tmp_path / "videos.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    made = tables.made(["panoramas", "videos.csv"]).splitlines()
    assert made[4] == (
        "| successor, encoder | 0.500 [0.500, 0.500] | 0.500 [0.500, 0.500] | - | 0.050 [0.050, 0.050] |"
    )
    rows = [line.split(" | ") for line in made[8:]]
    assert [row[0] for row in rows] == [
        "| random - native window", "| successor, encoder - native window", "| successor, encoder - random",
    ]  # fmt: skip
    assert [row[2] for row in rows] == ["+0.000 [+0.000, +0.000]", *["+0.250 [+0.250, +0.250]"] * 2]
