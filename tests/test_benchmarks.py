"""The scripts in ``benchmarks/`` and ``docs/`` run, each in its smallest form; what they measure is not judged."""

from __future__ import annotations

import ast
import csv
import importlib.util
import json
import sys
from importlib.machinery import SourceFileLoader
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from conftest import call_llrag
from llrag_cli import Pipeline, load_config
from llrag_cli.evaluation import study_trial
from llrag_cli.evaluation.metrics.score import Scores
from llrag_cli.evaluation.results import from_csv
from llrag_cli.models.embedded.family import FAMILY as EMBEDDED
from llrag_cli.training.embedded import evaluate, evaluate_scenes
from released import TOY

ROOT = Path(__file__).parents[1]


def script(name: str) -> ModuleType:
    """A script as a module of its own."""
    loader = SourceFileLoader(Path(name).stem + "_script", str(ROOT / name))  # also of a script without a suffix
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls ``main`` of a script with arguments and returns what it prints."""

    def call(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        script(name).main()
        return capsys.readouterr().out

    return call


def test_faults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        script("benchmarks/faults.py").main(seconds=1, every=40)
    assert end.value.code == 0
    assert "x write: reported, and resumed to the same files" in capsys.readouterr().out


def test_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With toy sizes, two of the steps: a download from the script's own hub, and a first video."""
    module = script("benchmarks/full_size.py")
    wanted = "self-forcing,prompt encoded"
    monkeypatch.setattr(sys, "argv", ["full_size.py", "--work", str(tmp_path), "--steps", wanted])
    module.main(TOY)
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in shown] == ["download, all of `self-forcing`", "generate, prompt encoded"]
    rows = module.read_rows(tmp_path / "table.csv")
    first, second = rows.values()
    assert first.planned is None and first.result == "0.0 GB of weights"
    assert second.planned > 0 and 0 < second.own <= second.resident and second.processor_seconds > 0
    module.write_rows(tmp_path / "again.csv", rows)
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "table.csv").read_text()
    assert (tmp_path / "runs/first/video.mp4").exists()
    assert not (tmp_path / "source/self_forcing.pt").exists()


def test_decoding(run: Any) -> None:
    ways = run("benchmarks/decoding.py", "--pairs", "1", "--base-dim", "4", "--size", "2", "3").splitlines()
    assert [line.split(" / ")[0] for line in ways] == [
        "eager",
        "compiled",
        "channels_last_3d",
        "compiled, channels_last_3d",
    ]
    counted = run("benchmarks/decoding.py", "--count", "--size", "2", "3").splitlines()
    assert [line.split(":")[0] for line in counted] == ["contiguous", "channels_last_3d"]
    assert all("of these 87 norms with activations: 783 kernels" in line for line in counted)


def test_growth(run: Any) -> None:
    result = json.loads(run("benchmarks/growth.py", "--only", "host", "--last", "20", "--pairs", "2"))
    assert (result["tier"], result["points"][0]["block"]) == ("host", 20)
    assert result["points"][0]["ratio"] > 0 and 0 <= result["hit_rate"] <= 1
    assert "4 x 2,000 keys of 16" in run("benchmarks/growth.py", "--search", "--keys", "2000")


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="needs torchao")
def test_eight_bit(run: Any) -> None:
    lines = run("benchmarks/eight_bit.py", "--prompts", "1", "--seconds", "1").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| bfloat16 / float32",
        "| bfloat16, int8 / bfloat16",
        "| bfloat16, fp8 (weights alone) / bfloat16",
    ]
    assert all(0 < float(line.split(" | ")[1]) < 0.2 for line in lines[2:])


def test_kill_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With processes that finish at once: killing and resuming real ones is in the tests of runs."""
    module = script("benchmarks/kill_chain.py")
    started: list[tuple[str, ...]] = []

    class Finished:
        returncode = 0

        def poll(self) -> int:
            return 0

        def wait(self) -> int:
            return 0

    def start(*arguments: str) -> Finished:
        started.append(arguments)
        folder = Path(arguments[arguments.index("--out" if "--out" in arguments else "--resume") + 1])
        folder.mkdir(exist_ok=True)
        for name in (*module.FILES, "commits.jsonl"):
            (folder / name).write_text("the same")
        (folder / "run.json").write_text('{"status": "complete"}')
        return Finished()

    monkeypatch.setattr(module, "start", start)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    assert module.chain(tmp_path, kills=1, seconds=2, seed=0)
    assert [arguments[0] for arguments in started] == [module.PROMPT, module.PROMPT, "--resume"]


def test_long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = script("benchmarks/long_run.py")
    monkeypatch.setattr(module, "TICK", 0.01)
    code = """
import pathlib, time
for line in range(3):
    while time.process_time() < 0.1 * (line + 2):
        pass
    with pathlib.Path("commits.jsonl").open("a") as file:
        file.write("{}\\n")
time.sleep(0.2)
"""
    monkeypatch.chdir(tmp_path)
    watch = module.watch
    monkeypatch.setattr(module, "watch", lambda command, folder: watch([sys.executable, "-c", code], tmp_path))
    monkeypatch.setattr(sys, "argv", ["long_run.py", "--seconds", "4", "--plot", str(tmp_path / "plot.png")])
    module.main()
    shown = capsys.readouterr().out
    assert "| 0-0 |" in shown and "33 frames, " in shown
    assert (tmp_path / "plot.png").exists()


def test_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"prompts": 2, "seeds": 1, "seconds": 8.0, "reference": 4.0, "steps": 1, "batch": 2, "threads": 1}
    small |= {"backbone": "tiny-distilled"}
    memories = "native window;random;successor, average pooling"
    script("benchmarks/memory.py").main(tmp_path, memories=memories, skip=0, keep=0.4, **small)
    assert "2 videos of each memory" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == {
        "memory.json", "memory.png", "prompts.txt", "table.md", "videos.csv", "videos.jsonl",
    }  # fmt: skip
    assert len((tmp_path / "videos.csv").read_text().splitlines()) == 1 + 6  # one stretch each
    assert len((tmp_path / "videos.jsonl").read_text().splitlines()) == 6


def test_memory_costs(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "costs.csv"
    small = ("--pairs", "1", "--warmup", "6", "--seconds", "10", "--rules", "native", "last-layers", "--threads", "1")
    shown = run("benchmarks/memory_costs.py", "--out", str(out), *small).splitlines()
    with out.open(newline="") as file:
        rows = {row["rule"]: row for row in csv.DictReader(file)}
    assert [*rows] == [line.split(":")[0] for line in shown] == ["nearest", "native", "last-layers"]
    nearest, native, layers = rows["nearest"], rows["native"], rows["last-layers"]
    assert float(nearest["ratio"]) == 1 and all(float(row["milliseconds"]) > 0 for row in rows.values())
    assert int(layers["archive"]) / int(nearest["archive"]) == 3 / 8  # of eight layers
    assert native["archive"] == native["copied"] == "0"
    frame = int(nearest["archive"]) / load_config("tiny-distilled").latent_frames(10)
    assert int(nearest["copied"]) == round(float(nearest["pages"]) * frame) > 0


GAINS = {  # in identity, over `nearest`, by step of the study
    "search": {"commit-self": -0.1, "last-layers": 0.2, "v-prompt": 0.1, "keys-average": 0.0},
    "pairs": {"last-layers_v-prompt": 0.3},
    "confirm": {},
}


def test_memory_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Which studies are run with which rules; the commands are read by llrag, and nothing is generated."""
    module = script("benchmarks/memory_rules.py")
    monkeypatch.setattr(Pipeline, "load", lambda config: config)
    monkeypatch.setattr(study_trial, "trial", lambda pipeline, *, videos: study_trial.Rates(0.0, 0.0, 0.0, 0.0))
    commands: dict[str, list[str]] = {}

    def call(command: list[str], *, check: bool) -> None:
        words = command[3:]
        done = call_llrag(tmp_path, *words, "--dry-run")
        assert check and done.returncode == 0, done.stderr
        out = Path(words[words.index("--out") + 1])
        commands[out.name] = words
        names = [words[place + 1].partition("=")[0] for place, word in enumerate(words) if word == "--variant"]
        gaps = [
            {"condition": name, "minus": "nearest", "identity": {"mean": gain}}
            for name, gain in GAINS[out.name.partition("-")[0]].items()
        ]
        (out / "videos/nearest").mkdir(parents=True)
        (out / "videos/nearest/02-seed1.mp4").write_bytes(b"")
        (out / "settings.json").write_text(json.dumps({"conditions": ["native", "nearest", *names]}))
        (out / "results.json").write_text(json.dumps({"settings": {"variants": names}, "differences": gaps}))

    monkeypatch.setattr(module.subprocess, "run", call)
    monkeypatch.setattr(module, "open_video", lambda path: SimpleNamespace(frames=[0, 1, 2], fps=8))
    found = Scores(3, 1, {"dynamic_degree": 0.5}, {})
    monkeypatch.setattr(module, "score", lambda frames, **options: found)
    arguments = ["--out", str(tmp_path / "study"), "--encoder", str(EMBEDDED.bundled_encoder), "--scenes", "2", "3"]
    monkeypatch.setattr(sys, "argv", ["memory_rules.py", *arguments])
    module.main()
    assert [*commands] == [f"{step}-tiny-distilled" for step in ("search", "pairs", "confirm")]
    search, pairs, confirm = (
        {option: [value for word, value in pairwise(words) if word == option] for option in words}
        for words in commands.values()
    )
    assert len(search["--variant"]) == 20 and search["--condition"] == ["native", "nearest", "random"]
    assert [each["--pool"] + each["--scenes"] + each["--videos"] for each in (search, pairs, confirm)] == [
        ["search-2", "2", "0"],
        ["search-2", "2", "0"],
        ["confirm-2", "3", "4"],
    ]
    pair = "last-layers_v-prompt=memory.read_layers=3 memory.strategy=prompt"
    assert pairs["--variant"] == [pair]
    assert confirm["--variant"] == ["last-layers=memory.read_layers=3", pair]
    assert "chosen: {'last-layers': 'memory.read_layers=3', 'last-layers_v-prompt'" in capsys.readouterr().out
    (video,) = from_csv((tmp_path / "study/confirm-tiny-distilled/scores.csv").read_text())
    assert (video.case.memory, video.case.prompt, video.case.seed, video.seconds) == ("nearest", "scene 2", 1, 60.0)
    assert video.scores.metrics["dynamic_degree"] == 0.5


def test_gains_are_those_of_variants_over_the_nearest_frames(tmp_path: Path) -> None:
    module = script("benchmarks/memory_rules.py")
    gaps = [("nearest", "native", 0.9), ("a", "nearest", 0.1), ("a", "native", 0.7), ("b", "nearest", -0.2)]
    content = {
        "settings": {"variants": {"a": [], "b": [], "c": []}},
        "differences": [{"condition": one, "minus": other, "identity": {"mean": mean}} for one, other, mean in gaps]
        + [{"condition": "c", "minus": "nearest", "identity": None}],
    }
    (tmp_path / "results.json").write_text(json.dumps(content))
    assert module.gains(tmp_path) == {"a": 0.1, "b": -0.2}
    assert module.best_of({"a": 0.1, "b": -0.2}, {"a": "", "b": "", "c": ""}) == "a"
    assert module.best_of({"b": -0.2}, {"b": "", "c": ""}) is None


def test_score_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module = script("benchmarks/score_memory.py")
    assert module.SOURCE.endswith("832x480")
    monkeypatch.setattr(module, "SOURCE", "testsrc2=size=64x64")
    monkeypatch.setattr(sys, "argv", ["score_memory.py", "--seconds", "3", "--fps", "4"])
    module.main()
    assert "| 3 s, 4 fps | 12 |" in capsys.readouterr().out


def test_speed(run: Any) -> None:
    shown = run("benchmarks/speed.py", "--pairs", "2", "--early", "2", "--late", "3", "--threads", "1")
    assert "block 3 / block 2, none: " in shown and "block 3 / block 2, nearest: " in shown


def test_tiers(run: Any, tmp_path: Path) -> None:
    shape = tmp_path / "shape.yaml"
    shape.write_text(
        "num_layers: 1\nnum_attention_heads: 1\nattention_head_dim: 16\nffn_dim: 16\ntext_dim: 8\nvae_base_dim: 4\n"
    )
    shown = run("benchmarks/tiers.py", "--shape", str(shape), "--pairs", "1", "--warmup", "1", "--threads", "1")
    assert [line.split(" / ")[0] for line in shown.splitlines()] == ["host", "host-int8", "disk", "recompute"]


def test_contact_sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script("docs/make_contact_sheet.py")
    monkeypatch.setattr(module, "PROMPTS", module.PROMPTS[:1])
    monkeypatch.setattr(module, "SECONDS", 0.5)
    module.main(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 128, 128 + 26)


CODE = """
def larger(first: int = 1, *, strict: bool = True) -> int:
    if first < 3 and not strict:
        return first + 2
    raise ValueError(f"{1 + 1}")
"""


def test_mutations(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    module = script("benchmarks/mutations.py")
    found = {(each.line, each.before, each.after): text for each, text in module.mutations(CODE)}
    assert set(found) == {
        (2, "1", "2"),
        (2, "True", "False"),
        (3, "if first < 3 and (not strict):", "if not (first < 3 and (not strict)):"),
        (3, "first < 3 and (not strict)", "first < 3 or not strict"),
        (3, "first < 3", "first <= 3"),
        (3, "3", "4"),
        (3, "not strict", "not not strict"),
        (4, "return first + 2", "return None"),
        (4, "first + 2", "first - 2"),
        (4, "2", "3"),
    }
    assert len({*found.values(), ast.unparse(ast.parse(CODE))}) == len(found) + 1  # each differs, also from the code
    recorded = tmp_path / "recorded.json"
    named = "tests/evaluation/test_statistics.py::"
    lines = {
        str(line): [named + "test_ties_share_their_ranks", "tests/test_gone.py::test_gone"] for line in range(1, 999)
    }
    everything = list(module.Recorded.read(written(recorded, {"seconds": {}, "lines": {}})).present)
    seconds = dict.fromkeys([*everything, "tests/test_gone.py::test_gone"], 1.0)
    written(recorded, {"seconds": seconds, "lines": {"evaluation/statistics.py": lines}})
    seen: list[tuple[str, tuple[str, ...]]] = []

    def run_tests(folder: Path, tests: tuple[str, ...], *, limit: float) -> str:
        seen.append(((folder / "src/llrag_cli/evaluation/statistics.py").read_text(), (*tests,)))
        return "" if len(seen) != 2 else tests[0]

    monkeypatch.setattr(module, "run_tests", run_tests)
    monkeypatch.setattr(module, "_preload", lambda: None)
    chosen = {"rooms": "evaluation/statistics.py", "sample": 3, "seed": 0, "coverage": recorded, "most": 9.0}
    module.main(**chosen, out=tmp_path / "out.jsonl", again=None)
    assert len({code for code, _ in seen}) == 4  # three mutations of the code, and as it is for the test that failed
    assert {tests for _, tests in seen} == {(named + "test_ties_share_their_ranks",)}
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 3 and shown[0].startswith("evaluation/statistics.py:")
    assert shown[-1] == "evaluation/statistics.py: 1 of 3 killed"
    del seen[:]
    module.main(**chosen, out=None, again=tmp_path / "out.jsonl")
    assert len({code for code, _ in seen}) == 3  # those that survived, and the code as it is: the second is killed


def test_a_test_that_fails_anyway_kills_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = script("benchmarks/mutations.py")
    file = tmp_path / "src/llrag_cli/file.py"
    file.parent.mkdir(parents=True)
    file.write_text(CODE)
    mutation, *_ = (each for each, _ in module.mutations(CODE, "file.py"))
    failing, ran = {"a::broken[1]"}, list[tuple[str, ...]]()

    def run_tests(folder: Path, tests: list[str], *, limit: float) -> str:
        ran.append((*tests,))
        mutated = file.read_text() != CODE
        return next((name for name in tests if name.startswith("a::broken") or (mutated and name in failing)), "")

    def killer() -> str:
        found = module.killer(mutation, tmp_path, ["a::broken", "a::exact"], limit=9.0, sound=sound)
        assert file.read_text() == CODE
        return found

    monkeypatch.setattr(module, "run_tests", run_tests)
    sound: dict[str, bool] = {}
    assert killer() == ""
    failing.add("a::exact")
    assert killer() == "a::exact" and sound == {"a::broken": False, "a::exact": True}
    assert ran[:3] == [("a::broken", "a::exact"), ("a::broken",), ("a::exact",)]


def written(file: Path, value: object) -> Path:
    file.write_text(json.dumps(value))
    return file


def test_tests_of_a_mutation(tmp_path: Path) -> None:
    module = script("benchmarks/mutations.py")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_new.py").write_text("def test_new() -> None: ...\ndef helper() -> None: ...\n")
    assert list(module._test_functions(tmp_path)) == ["tests/test_new.py::test_new"]
    (tmp_path / "src/llrag_cli").mkdir(parents=True)
    (tmp_path / "src/llrag_cli/user.py").write_text("from llrag_cli.file import LIMIT\n")
    lines = {1: [], 2: ["a::quick", "a::slow"], 3: ["b::slow"]}
    seconds = {"a::quick": 1.0, "a::slow": 9.0, "b::slow": 5.0, "b::quick": 2.0}
    recorded = module.Recorded(
        {"file.py": lines, "user.py": {1: ["b::quick"]}}, seconds, [*seconds, "tests/test_new.py::test_new"]
    )

    def chosen(first: int, last: int, *, most: float = 99.0) -> list[str]:
        mutation = module.Mutation("file.py", 0, first, first, last, "", "")
        return module.tests_for(mutation, recorded, most=most, root=tmp_path)

    assert chosen(2, 3) == ["tests/test_new.py::test_new", "b::slow", "a::quick", "a::slow"]
    assert chosen(2, 3, most=6.0) == ["tests/test_new.py::test_new", "b::slow", "a::quick"]
    assert chosen(0, 0)[1:] == ["b::quick", "b::slow", "a::quick", "a::slow"]  # only an import runs it
    assert chosen(1, 1)[1:] == []


def test_lines_of_a_mutation() -> None:
    module = script("benchmarks/mutations.py")
    code = "LIMIT = 3\ndef f(n=1):\n    if (n <\n            2):\n        return n + 1\n    return g(\n        n - 1)\n"
    found = {each.before: (each.first, each.last) for each, _ in module.mutations(code)}
    assert found["3"] == (0, 0) and found["n < 2"] == (3, 4) and found["n + 1"] == (5, 5) and found["n - 1"] == (6, 7)
    assert {(each.first, each.last) for each, _ in module.mutations(code) if each.line == 2} == {(3, 7)}  # a default


def test_coverage_by_test(tmp_path: Path) -> None:
    file = "tests/cli/test_endings.py"
    started, called = f"{file}::test_characters_that_a_stream_lacks_are_escaped", f"{file}::test_a_stream_that_was_lost"
    script("benchmarks/coverage_by_test.py").main(
        tmp_path / "recorded.json", ["-n", "0", file, "-k", "that_a_stream_lacks or that_was_lost"]
    )
    recorded = json.loads((tmp_path / "recorded.json").read_text())
    assert all(seconds > 0 for seconds in recorded["seconds"].values()) and len(recorded["seconds"]) == 2
    by_line = recorded["lines"]["cli/streams.py"].values()
    assert any(tests == [started] for tests in by_line)  # of a process that the test starts
    assert any(len(tests) == 1 and tests[0].startswith(called) for tests in by_line)


def test_oldest_versions_are_the_lower_bounds() -> None:
    found = script(".ci/oldest").oldest((ROOT / "pyproject.toml").read_text())
    assert {"torch==2.8", "pytest==8", "opencv-python-headless==4.10.0.82"} <= {*found}
    assert not any(line.startswith(("ruff", "mypy", "hatchling", "llrag")) for line in found)
    names = [line.split("==")[0] for line in found]
    assert len(names) == len({*names}) > 25


def test_evaluation_of_the_embedded_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["sampler.steps=[1000]"]
    evaluate.main(
        count=1, seconds=0.5, seed=0, rag=True, unseen=True, settings=few, objects=None, weights=None, out=None,
        as_json=False,
    )  # fmt: skip
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("1 prompts, combinations held out of training, 0.5 s each, nearest")
    assert len(shown) == 1 + len(evaluate.NAMES)
    monkeypatch.setattr(evaluate_scenes, "load_config", lambda name: load_config(name, settings=few))
    evaluate_scenes.main(count=1, seed=0, as_json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert {*evaluate_scenes.NAMES} <= {*row} and row["before"] != row["after"]
