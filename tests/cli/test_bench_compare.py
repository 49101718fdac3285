"""``llrag bench compare``: tables from results.csv alone, and the variants of a grid on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Llrag
from llrag_cli.evaluation.grid import Case
from llrag_cli.evaluation.metrics.registry import METRICS, ranked_metrics
from llrag_cli.evaluation.metrics.score import Scores
from llrag_cli.evaluation.results import as_csv, compare, from_csv
from llrag_cli.evaluation.run import Scored

BACKEND = "offline: toy"
RANKED = ranked_metrics("offline")


def video(memory: str, number: int, gain: float = 0.0) -> Scored:
    metrics = {name: 0.5 + gain + 0.01 * number * (1 + place % 3) for place, name in enumerate(METRICS)}
    metrics |= {"aesthetic_quality": None}  # type: ignore[dict-item]
    case = Case("tiny", memory, number, "a, quoted \"prompt\" of a 'user'", 1000 * number)
    return Scored(case, 30.0, Scores(240, 15, {**metrics}, {}), BACKEND)


VIDEOS = [video(memory, number, gain) for memory, gain in (("none", 0.0), ("k2", 0.1)) for number in range(1, 8)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "results.csv"
    path.write_text(as_csv(VIDEOS))
    return path


def test_a_csv_holds_all_that_a_comparison_needs() -> None:
    again = from_csv(as_csv(VIDEOS))
    assert compare(again, baseline="none", ranked=RANKED) == compare(VIDEOS, baseline="none", ranked=RANKED)
    assert [each.case for each in again] == [each.case for each in VIDEOS]


def test_the_tables_are_made_again(llrag: Llrag, file: Path) -> None:
    done = llrag("bench", "compare", "results.csv")
    assert done.returncode == 0, done.stderr
    assert "tiny, 30 s, 7 prompts, 7 videos of each memory" in done.stdout
    assert "k2 against none. Drift: better in similarity of first and last clip†" in done.stdout
    told = json.loads(llrag("bench", "compare", "results.csv", "--json").stdout)
    assert told["baseline"] == "none"
    assert told["results"] == compare(VIDEOS, baseline="none", ranked=RANKED)
    other = json.loads(llrag("bench", "compare", "results.csv", "--baseline", "k2", "--json").stdout)
    gap = other["results"][0]["memories"]["none"]["differences"]["first_to_last"]
    assert gap["mean"] == pytest.approx(-0.1)


def test_markdown(llrag: Llrag, file: Path) -> None:
    done = llrag("bench", "compare", "results.csv", "--markdown")
    lines = done.stdout.splitlines()
    assert lines[:4] == [
        "**tiny, 30 s**",
        "",
        "| metric | none (sliding window) | k2, minus none |",
        "| --- | --- | --- |",
    ]
    (row,) = [line for line in lines if line.startswith("| temporal flickering ↑ (ranked) | ")]
    assert row.endswith(", +0.1000†, 100 % won, [+0.1000, +0.1000] |")
    assert lines[-3].startswith("- k2 against none. Drift: better in ")


def test_files_are_put_together(llrag: Llrag, tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text(as_csv([each for each in VIDEOS if each.case.memory == "none"]))
    (tmp_path / "other.csv").write_text(as_csv([each for each in VIDEOS if each.case.memory == "k2"]))
    told = json.loads(llrag("bench", "compare", "one.csv", "other.csv", "--json").stdout)
    assert told["results"] == compare(VIDEOS, baseline="none", ranked=RANKED)
    twice = llrag("bench", "compare", "one.csv", "one.csv")
    assert twice.returncode == 2 and twice.stderr.startswith("error: a video is in the files twice")
    apart = as_csv([video("none", 1), video("k2", 2)])
    (tmp_path / "apart.csv").write_text(apart)
    assert "no video is there under every memory" in llrag("bench", "compare", "apart.csv").stderr


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: "", "line 1: the column `backbone` is missing"),
        (lambda text: text.replace("prompt_number", "prompt"), "line 1: the column `prompt_number` is missing"),
        (lambda text: text.replace("first_to_last", "last"), "line 1: unknown or repeated column"),
        (lambda text: text.splitlines()[0], "it has no rows"),
        (lambda text: text.replace("1000,", "x,", 1), "line 2: `seed` is no number: `x`"),
        (lambda text: text.replace("1000,", "nan,", 1), "line 2: `seed` is not finite"),
        *(
            (lambda text, wrong=wrong: text.replace("1000,", f"{wrong},", 1), f"`seed` is no whole number: `{wrong}`")
            for wrong in ("1.5", "1e3", "9" * 21)
        ),
        (lambda text: text.replace("1000,", "1_0,", 1), "`seed` is no number: `1_0`"),
        (lambda text: text.replace("1000,", "٣,", 1), "`seed` is no number: `٣`"),
        (lambda text: text.replace(",30,", ",-30,", 1), "is out of range: -30, 1"),
        (lambda text: text.replace(",30,1,", ",30,0,", 1), "is out of range: 30, 0"),
        (lambda text: text.replace("k2", "k\0", 1), "`memory`: a text has a null character"),
        (
            lambda text: "\n".join(
                [text.splitlines()[0], *(text.splitlines()[1].replace("none", f"m{number}") for number in range(201))]
            ),
            "more than 200 different values of `memory`",
        ),
        (lambda text: text + "tiny,none\n", "line 16: 2 values instead of "),
        (lambda text: text.replace("offline", "other"), "unknown backend `other`"),
    ],
)
def test_a_damaged_file_is_a_sentence(llrag: Llrag, file: Path, change: object, problem: str) -> None:
    assert callable(change)
    file.write_text(change(file.read_text()))
    done = llrag("bench", "compare", "results.csv")
    assert done.returncode == 2 and problem in done.stderr and "hint: " in done.stderr


def test_an_absent_file_or_memory_is_a_sentence(llrag: Llrag, file: Path) -> None:
    assert "`absent.csv` cannot be read: no such file" in llrag("bench", "compare", "absent.csv").stderr
    done = llrag("bench", "compare", "results.csv", "--baseline", "k3")
    assert done.stderr == "error: unknown memory `k3`\n\nhint: did you mean `k2`?\n"


def test_variants_are_videos_of_the_grid(llrag: Llrag) -> None:
    variants = ("--variant", "k2=memory.retrieved=2", "--variant", "late=memory.strategy=successor memory.guard=2")
    few = ("--count", "2", "--set", "sampler.steps=[1000]")
    done = llrag("bench", *variants, *few, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    assert (row["videos"], row["seconds_of_video"]) == (8, 240)  # none, nearest and the variants
    assert row["seconds_of_work"] > 0 and row["seconds_of_scoring"] > 0 and row["bytes"] > 0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--variant", "k2=memory.retreived=2"), "unknown setting `memory.retreived`"),
        (("--variant", "k2=memory.retrieved=2", "--variant", "k2=memory.guard=1"), "two memories are named `k2`"),
        (("--variant", "k2"), "the variant `k2` has no settings"),
        (("--encoder-variant", "mine=absent.safetensors"), "no such file: `absent.safetensors`"),
        (("--memory", "none", "--variant", "k2=memory.strategy=nearst"), "unknown memory strategy `nearst`"),
    ],
)
def test_a_wrong_variant_is_refused_before_work(llrag: Llrag, options: tuple[str, ...], problem: str) -> None:
    done = llrag("bench", *options)
    assert done.returncode == 2 and problem in done.stderr
