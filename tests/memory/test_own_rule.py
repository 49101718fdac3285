"""A rule from outside the package: a function that is named on the command line, and only there."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import Done, Llrag, call_llrag
from llrag_cli.batch.jobs import PipelineSpec, load_pipeline
from llrag_cli.engine.pipeline import Pipeline
from llrag_cli.errors import LlragError, UsageError
from llrag_cli.evaluation.grid import Case, strategy_variant
from llrag_cli.memory import own
from llrag_cli.memory.candidates import Candidates
from llrag_cli.presets import load_config

RULES = '''
"""Rules of a user."""

def newest(candidates, count):
    """The newest candidates, newest first."""
    total = len(candidates.frames)
    return candidates.frames.new_tensor(range(total - 1, -1, -1)[:count])
'''
MADE = ("generate", "a red circle", "--memory", "my_rules:newest", "--seconds", "13", "--set", "sampler.steps=[1000]")


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No rule is loaded, and none stays."""
    monkeypatch.setattr(own, "_loaded", {})
    path = [*sys.path]
    yield
    sys.path[:] = path
    sys.modules.pop("my_rules", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own")
    (path / "my_rules.py").write_text(RULES)
    return path


@pytest.fixture(scope="module")
def made(folder: Path) -> Done:
    """A run under a rule from a file in the current folder."""
    done = call_llrag(folder, *MADE, "--out", "run", "--json")
    sys.modules.pop("my_rules", None)
    return done


def test_a_function_in_the_current_folder_chooses_the_frames(made: Done, folder: Path) -> None:
    assert made.returncode == 0, made.stderr
    memory = json.loads(made.stdout)["config"]["memory"]
    assert (memory["strategy"], memory["rule"]) == ("own", "my_rules:newest")
    last = json.loads((folder / "run/memory.jsonl").read_text().splitlines()[-1])
    newest = last["retrieved"][0]
    assert last["retrieved"] == list(range(newest, newest - 4, -1)) and len(last["similarities"]) == 4


def test_a_record_cannot_make_llrag_import_code(made: Done, folder: Path) -> None:
    assert made.returncode == 0
    refused = call_llrag(folder, "generate", "--resume", "run", "--seconds", "20")
    assert refused.returncode == 2 and "my_rules" not in sys.modules
    assert refused.stderr == (
        "error: the memory rule `my_rules:newest` is code from outside llrag, which no file can make it run\n\n"
        "hint: if you trust it, name it: `--memory my_rules:newest`\n"
    )
    inspected = call_llrag(folder, "inspect", "run")  # needs no rule
    assert inspected.returncode == 0, inspected.stderr
    again = call_llrag(folder, "generate", "--resume", "run", "--memory", "my_rules:newest", "--seconds", "14")
    assert again.returncode == 0, again.stderr


def test_a_preset_cannot_make_llrag_import_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("mine.yaml").write_text("backbone: {family: tiny}\nmemory: {strategy: own, rule: 'my_rules:newest'}\n")
    config = load_config("mine.yaml")
    with pytest.raises(UsageError, match="the memory rule `my_rules:newest` is code from outside"):
        Pipeline.load(config, device="cpu")
    assert "my_rules" not in sys.modules
    config = load_config("mine.yaml", memory="my_rules:newest")
    config.memory.require_ready()


@pytest.mark.parametrize(
    "lines",
    [
        "memory: my_rules:newest",
        "memory: own\nset: {memory.rule: 'my_rules:newest'}",
        "set: {memory.strategy: own, memory.rule: 'my_rules:newest'}",
        "set: {memory.strategy: 'my_rules:newest'}",
        "set: {memory: {rule: 'my_rules:newest'}}",
        "set: {'memory.rule=my_rules:newest #': 1}",
        "set: {' memory.rule': 'my_rules:newest'}",
        "set: {memory.strategy: ['my_rules:newest']}",
    ],
)
def test_a_scene_cannot_make_llrag_import_code(llrag: Llrag, tmp_path: Path, lines: str) -> None:
    (tmp_path / "my_rules.py").write_text("raise SystemExit('imported')\n" + RULES)
    (tmp_path / "scene.yaml").write_text(f"{lines}\nshots: [{{prompt: a red circle, seconds: 2}}]\n")
    for command in (("scene", "check", "scene.yaml"), ("generate", "--scene", "scene.yaml")):
        done = llrag(*command)
        assert (done.returncode, "my_rules" in sys.modules) == (2, False)
        assert "a scene cannot choose a memory rule from outside the package" in done.stderr


def test_a_rule_is_imported_only_where_it_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=r"`nearest` has no `memory\.rule`"):
        load_config("tiny", settings=["memory.rule=my_rules:newest"])
    assert "my_rules" not in sys.modules


def test_a_worker_loads_the_rule_of_its_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    config = load_config("tiny", memory="my_rules:newest")
    monkeypatch.setattr(own, "_loaded", {})  # another process
    load_pipeline(PipelineSpec(config, device="cpu"))
    config.memory.require_ready()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("my_rules:oldest", "error: the module `my_rules` has no function `oldest`"),
        ("my_rule:newest", "error: the rule `my_rule:newest` cannot be imported: No module named 'my_rule'"),
        ("my_rules:", "error: `my_rules:` names no rule"),
        ("../my_rules:newest", "error: `../my_rules:newest` names no rule"),
        ("own", "error: settings: `memory.rule`: field required"),
        ("nearst", "error: unknown memory strategy `nearst`"),
    ],
)
def test_a_wrong_name_is_refused(llrag: Llrag, tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "my_rules.py").write_text(RULES)
    done = llrag("generate", "a red circle", "--memory", name)
    assert done.returncode == 2 and problem in done.stderr and "hint: " in done.stderr
    assert not (tmp_path / "runs").exists()


def test_an_installed_package_gives_its_rules_short_names(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)

    def entry_points(*, group: str, name: str) -> list[EntryPoint]:
        known = [EntryPoint("newest", "my_rules:newest", "llrag.memory")]
        return [entry for entry in known if (entry.group, entry.name) == (group, name)]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    memory = load_config("tiny", memory="newest").memory
    assert memory.title == "my_rules:newest"
    memory.require_ready()


def test_a_benchmark_compares_it_under_its_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    variant = strategy_variant("my_rules:newest")
    assert variant.config("tiny", ["memory.retrieved=4"]).label == "tiny my_rules:newest"
    place = Case("tiny", variant.name, 1, "a", 0).folder(Path("bench")).parent.name
    assert place.startswith("my_rules-newest-")


def test_the_rule_of_the_documentation(llrag: Llrag, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/own-rules.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "page_rules.py").write_text(code)
    done = llrag("generate", "a red circle", "--memory", "page_rules:spread", *MADE[4:], "--out", "run")
    assert done.returncode == 0, done.stderr
    last = json.loads((tmp_path / "run/memory.jsonl").read_text().splitlines()[-1])
    assert len(last["retrieved"]) == 4 and sorted(last["retrieved"]) == last["retrieved"]


@pytest.mark.parametrize(
    ("name", "module", "problem"),
    [
        ("wrong_1", "def rule(:", " cannot be imported: invalid syntax"),
        ("wrong_2", "1 / 0", " cannot be imported: its module raised ZeroDivisionError: division by zero"),
        ("wrong_3", "raise SystemExit", " its module raised SystemExit (`wrong_3.py`, line 1)"),
        ("wrong_4", "def rule(): pass", " raised TypeError: rule() takes 0 positional arguments"),
        ("wrong_5", "def rule(*_):\n raise ValueError", " raised ValueError (`wrong_5.py`, line 2)"),
    ],
)
def test_what_a_rule_raises_is_an_error_of_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(f"{name}.py").write_text(module)
    with pytest.raises(LlragError, match=f"the rule `{name}:rule`.*{re.escape(problem)}"):
        load_config("tiny", memory=f"{name}:rule").memory.choose(candidates())  # type: ignore[attr-defined]
    sys.modules.pop(name, None)


def candidates(total: int = 5, batch: int = 2) -> Candidates:
    keys = torch.nn.functional.normalize(torch.arange(batch * total * 3.0).view(batch, total, 3) + 1, dim=-1)
    return Candidates(torch.arange(total), keys, keys[:, 0], block=3, draw=lambda: torch.rand(batch, total))


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ([0, 1], "returned a `list`, not a tensor of positions"),
        (torch.tensor([0.0, 1.0]), "returned values that are not integers"),
        (torch.tensor([True, False]), "returned values that are not integers"),
        (torch.tensor([[0, 1]]), "returned the shape [1, 2] for a batch of 2"),
        (torch.tensor(3), "returned the shape [] for a batch of 2"),
        (torch.tensor([0, 1, 2, 3]), "returned 4 frames instead of at most 3"),
        (torch.tensor([0, 5]), "returned a position outside 0..4"),
        (torch.tensor([-1, 0]), "returned a position outside 0..4"),
        (torch.tensor([1, 1]), "returned a frame twice"),
    ],
)
def test_a_result_that_is_no_choice_is_refused(returned: object, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "_loaded", {"my:rule": lambda candidates, count: returned})
    with pytest.raises(LlragError) as refused:
        own.OwnRule(rule="my:rule", retrieved=3).choose(candidates())
    assert problem in str(refused.value)


def test_a_choice_may_be_the_same_for_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(candidates: Candidates, count: int) -> Tensor:
        return candidates.frames[:count].flip(0)

    monkeypatch.setattr(own, "_loaded", {"my:rule": rule})
    given = candidates()
    positions, similarities = own.OwnRule(rule="my:rule", retrieved=2).choose(given)
    assert positions.tolist() == [[1, 0], [1, 0]]
    assert torch.equal(similarities, given.similarities[:, [1, 0]])
