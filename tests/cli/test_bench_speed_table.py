"""``llrag bench speed --choice``: a table of ways to run a backbone, each measured by a command of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from conftest import Llrag, call_llrag
from llrag_cli.cli import bench_speed_table
from llrag_cli.cli.bench_speed_table import reason_of_end, run_command
from llrag_cli.errors import UsageError
from llrag_cli.evaluation.speed_table import Choice, all_choices, markdown_of

CHECKS = [{"case": "a", "quantity": "b", "error": 1e-7, "tolerance": 1e-5, "note": "", "passed": True}]
LARGER = ("--backbone", "self-forcing", "--random-weights", "--device", "cpu", "--dtype", "float32")


def measured(seconds: float, *, peak: int | None = None) -> dict[str, Any]:
    """What a command prints that measures a choice."""

    def memory(factor: float) -> dict[str, Any]:
        return {
            "generation": {"block_seconds": factor * seconds},
            "end_to_end": {"pixel_fps": 12 / seconds},
            "decode_seconds": 0.25,
            "planned_bytes": 15 * 10**9,
            "peak_bytes": peak,
        }

    about = {"backbone": "self-forcing", "weights": "random", "parameters": 1_400_000_000, "width": 832, "height": 480}
    about |= {"dtype": "bfloat16", "device": "A GPU", "threads": 1, "attention": "flash", "blocks": 20, "warmup": 9}
    about |= {"frames_per_block": 3, "versions": {"torch": "2.13"}}
    ratios = {"nearest": {"generation": {"median": 1.02}}}
    memories = {"none": memory(1.0), "nearest": memory(1.02)}
    held = {"planned_bytes": 20 * 10**9, "peak_memory_bytes": 19 * 10**9}
    return {**about, "memories": memories, "ratios": ratios, **held}


class Commands:
    """Takes the place of processes: each ends as ``endings`` says for what its command line holds."""

    def __init__(self, endings: dict[str, tuple[int, Any, str]]) -> None:
        self.endings = endings
        self.run: list[str] = []

    def __call__(self, arguments: Sequence[str]) -> tuple[int, str, str, float]:
        line = " ".join(arguments)
        self.run.append(line)
        code, result, err = next(ending for part, ending in self.endings.items() if part in line)
        return code, json.dumps(result) if result is not None else "", err, 1.5


def commands(monkeypatch: pytest.MonkeyPatch, **endings: tuple[int, Any, str]) -> Commands:
    fake = Commands({"verify": (0, CHECKS, ""), **endings, "bench": (0, measured(0.5, peak=14 * 10**9), "")})
    monkeypatch.setattr(bench_speed_table, "run_command", fake)
    return fake


def test_choices_are_words() -> None:
    assert Choice.parse("compiled+tiny+int8") == Choice(compiled=True, decoder="tiny", quantize="int8")
    assert Choice.parse("full") == Choice() and Choice().name == "eager"
    for choice in all_choices():
        assert Choice.parse(choice.name) == choice
    assert len({choice.name for choice in all_choices()}) == 24
    assert Choice.parse("tiny+fp8").settings == ("video.decoder=tiny", "backbone.quantize=fp8")
    with pytest.raises(UsageError, match="`int8\\+fp8` says twice how it differs"):
        Choice.parse("int8+fp8")


def test_a_choice_that_fails_is_a_row_that_says_so(llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    oom = "warning: something\nerror: memory ran out\n\nhint: free some memory\n"
    fake = commands(monkeypatch, **{"--compile": (-9, None, ""), "decoder=tiny": (1, None, oom)})
    choices = [part for name in ("eager", "tiny", "compiled") for part in ("--choice", name)]
    done = llrag("bench", "speed", *LARGER, *choices)
    assert done.returncode == 0, done.stderr
    assert fake.run[0] == "verify --device cpu --dtype float32 --json" and len(fake.run) == 4
    assert "self-forcing, random weights, 1400 M parameters, 832x480, bfloat16 on A GPU, attention flash" in done.stdout
    assert "llrag verify: 1 of 1 quantities within tolerance, float32" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("eager "))
    assert " ".join(row.split()) == "eager 500 510 1.020 250 24 24 15 GB / 14 GB 15 GB / 14 GB"
    assert "eager+tiny: memory ran out" in done.stdout
    assert "compiled: ended by SIGKILL: memory may have run out" in done.stdout


def test_the_same_command_measures_what_is_missing(llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = commands(monkeypatch, **{"--compile": (1, None, "error: no compiler was found")})
    asked = ("bench", "speed", *LARGER, "--choice", "eager", "--choice", "compiled")
    assert llrag(*asked).returncode == 0
    page = Path("bench-speed/table.md").read_text()
    assert page.splitlines()[3].startswith("| compiled | no compiler was found |")
    assert "  # measured before" in llrag(*asked, "--dry-run").stdout.splitlines()[1]
    again = llrag(*asked, "--markdown")
    assert again.stdout == page
    assert ["--compile" in line for line in fake.run] == [False, False, True, True]
    others = llrag(*asked, "--blocks", "3", "--json")
    assert len(fake.run) == 6 and "--blocks 3" in fake.run[-1]
    told = json.loads(others.stdout)
    assert told == json.loads(Path("bench-speed/table.json").read_text())
    assert told["choices"]["compiled"]["error"] == "no compiler was found"
    assert told["choices"]["eager"]["result"]["memories"]["none"]["peak_bytes"] == 14 * 10**9
    Path("bench-speed/eager.json").write_text("{")  # damaged: it is measured again
    assert llrag(*asked, "--blocks", "3").returncode == 0 and len(fake.run) == 8


def _without(content: dict[str, Any], *path: str) -> None:
    *sections, last = path
    for section in sections:
        content = content[section]
    del content[last]


@pytest.mark.parametrize("file", ["eager", "verify-float32"])
def test_a_damaged_result_is_measured_again(
    llrag: Llrag, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str
) -> None:
    fake = commands(monkeypatch)
    asked = ("bench", "speed", *LARGER, "--choice", "eager")
    assert llrag(*asked).returncode == 0 and len(fake.run) == 2
    path = Path("bench-speed") / f"{file}.json"
    whole = path.read_text()
    damages: list[Any] = [None, {}, {"memories": {}}, []]
    if file == "eager":
        for place in (
            ("memories", "none"),
            ("ratios", "nearest"),
            ("memories", "none", "decode_seconds"),
            ("threads",),
        ):
            result = json.loads(whole)["result"]
            _without(result, *place)
            damages.append(result)
        damages += [{**json.loads(whole)["result"], "parameters": "many"}]
    else:
        damages += [{"dtype": "float32", "compared": 1, "failed": failed} for failed in ("a", [1], None, ["a", "b"])]
    for result in damages:
        path.write_text(json.dumps({**json.loads(whole), "result": result}))
        fake.run.clear()
        done = llrag(*asked)
        assert (done.returncode, len(fake.run)) == (0, 1), (result, done.stderr)


@pytest.mark.parametrize(
    ("endings", "said"),
    [
        (
            {"verify": (1, [{**CHECKS[0], "passed": False}], "")},
            "0 of 1 quantities within tolerance, float32; not a: b",
        ),
        ({"verify": (-11, None, "")}, "llrag verify: did not run: ended by SIGSEGV"),
        ({"bench": (1, None, "Traceback\nValueError: no")}, "eager: ValueError: no"),
        ({"bench": (0, None, "")}, "eager: exit code 0"),
    ],
)
def test_a_failed_check_or_no_row_at_all_is_an_error(
    llrag: Llrag, monkeypatch: pytest.MonkeyPatch, endings: dict[str, Any], said: str
) -> None:
    fake = commands(monkeypatch)
    fake.endings |= endings
    done = llrag("bench", "speed", *LARGER, "--choice", "eager")
    assert done.returncode == 1 and said in done.stdout


def test_all_are_the_choices_that_the_backbone_has(llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llrag_cli.models.eight_bit.find_spec", lambda name: None)
    shown = llrag("bench", "speed", *LARGER, "--all", "--dry-run").stdout.splitlines()
    assert ["--compile" in line for line in shown] == [False, False, False, True, True]
    assert ["decoder=tiny" in line for line in shown] == [False, False, True, False, True]
    monkeypatch.setattr("llrag_cli.models.eight_bit.find_spec", lambda name: True)
    gpu = llrag("bench", "speed", *LARGER, "--device", "cuda", "--all", "--dry-run").stdout
    assert [line.count("int8") for line in gpu.splitlines()].count(1) == 2  # compiled ones, with each decoder
    assert gpu.count("quantize=fp8") == 4 and gpu.startswith("llrag verify --device cuda --dtype float32")
    assert "graphs" not in gpu  # of little use where a block has three frames
    framewise = [*LARGER[2:], "--backbone", "causal-forcing-framewise", "--device", "cuda", "--all", "--dry-run"]
    assert llrag("bench", "speed", *framewise).stdout.count("--cuda-graphs") == 10
    embedded = llrag("bench", "speed", "--device", "cpu", "--all", "--dry-run", "--memory", "none").stdout
    assert "tiny" not in embedded.replace("--backbone tiny", "") and "fp8" not in embedded
    assert embedded.count("--memory none --blocks 20") == 4


def test_choices_are_measured_for_real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By commands in this process, with random weights of a small model and both decoders."""

    def here(arguments: Sequence[str]) -> tuple[int, str, str, float]:
        if arguments[0] == "verify":
            return 0, json.dumps(CHECKS), "", 0.1
        done = call_llrag(tmp_path, *arguments)
        return done.returncode, done.stdout, done.stderr, 0.1

    monkeypatch.setattr(bench_speed_table, "run_command", here)
    sizes = "num_layers: 1\nnum_attention_heads: 1\nattention_head_dim: 16\nffn_dim: 16\ntext_dim: 8\nfreq_dim: 16\n"
    (tmp_path / "small.yaml").write_text(sizes + "vae_base_dim: 4\n")
    few = ("--set", "backbone.height=4", "--set", "backbone.width=4", "--set", "sampler.steps=[1000]")
    short = ("--config", str(tmp_path / "small.yaml"), *few, "--blocks", "1", "--warmup", "0", "--device", "cpu")
    done = call_llrag(tmp_path, "bench", "speed", *short, "--choice", "full", "--choice", "tiny", "--json")
    assert done.returncode == 0, done.stdout
    rows = json.loads(done.stdout)["choices"]
    assert [row["error"] for row in rows.values()] == [None, None]
    full, tiny = (row["result"] for row in rows.values())
    assert (full["decoder"], tiny["decoder"]) == ("full", "tiny")
    assert full["planned_bytes"] > full["memories"]["none"]["planned_bytes"] > 10**5
    assert full["memories"]["none"]["peak_bytes"] is None and full["peak_memory_bytes"] > 10**8
    assert full["memories"]["none"]["decode_seconds"] > 0


def test_a_command_runs_in_a_process_of_its_own() -> None:
    code, out, err, seconds = run_command(["--version"])
    assert (code, err) == (0, "") and out.strip() and seconds > 0
    code, out, err, _ = run_command(["bench", "speed", "--blocks", "0"])
    assert (code, out) == (2, "") and reason_of_end(code, err) == "nothing to time"


def test_markdown_is_a_table() -> None:
    assert markdown_of([["choice", "a|b"], ["eager", "1"]], ["said"]) == (
        "| choice | a\\|b |\n| --- | ---: |\n| eager | 1 |\n\n- said"
    )
