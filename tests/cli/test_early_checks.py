"""What can be known before work is refused before torch is imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Llrag
from forked import Outcome, run_each
from llrag_cli.cli import options
from llrag_cli.cli.options import parse_seconds
from llrag_cli.errors import UsageError
from llrag_cli.evaluation.leave_return import plan as leave_return
from llrag_cli.evaluation.returning import plan as returning
from llrag_cli.files.prompts import read_prompt_file
from llrag_cli.presets import load_config

REFUSED: dict[str, tuple[tuple[str, ...], str]] = {  # a command line, and what its message contains
    "existing folder": (("generate", "x", "--out", "used"), "`used` already contains a run"),
    "folder of other files": (("generate", "x", "--out", "notes"), "`notes` exists and is not empty"),
    "unwritable folder": (("generate", "x", "--out", "file/run"), "`file/run` cannot be written: not a directory"),
    "folder of all runs": (
        ("generate", "--prompts", "prompts.txt", "--out", "file"),
        "`file` cannot be written: not a directory",
    ),
    "resume": (("generate", "--resume", "notes"), "`notes` is not a run folder: it has no run.json"),
    "extend": (("extend", "nowhere"), "no run folder `nowhere`"),
    "inspect": (("inspect", "notes"), "`notes` is not a run folder"),
    "backbone": (("generate", "x", "--backbone", "tinny"), "unknown preset `tinny`"),
    "backbone of doctor": (("doctor", "--backbone", "tinny"), "unknown preset `tinny`"),
    "decoder": (
        ("generate", "a red circle", "--backbone", "tiny", "--decoder", "tiny"),
        "`video.decoder` is `tiny`, but the embedded model has one decoder",
    ),
    "backbone of bench": (("bench", "--backbone", "tinny"), "unknown preset `tinny`"),
    "choice of bench speed": (("bench", "speed", "--choice", "compild"), "unknown word `compild` in the choice"),
    "choice of the embedded model": (
        ("bench", "speed", "--choice", "eager+tiny"),
        "the embedded model has one decoder",
    ),
    "choices twice": (("bench", "speed", "--choice", "eager", "--all"), "`--all` and `--choice` cannot be combined"),
    "compiled choice": (("bench", "speed", "--all", "--compile"), "`--compile` cannot be combined with `--choice`"),
    "graphs on a CPU": (("generate", "x", "--cuda-graphs", "--device", "cpu"), "`--cuda-graphs` needs a GPU"),
    "graphs and offloading": (
        ("generate", "x", "--cuda-graphs", "--offload"),
        "`--cuda-graphs` and `--offload` cannot be combined",
    ),
    "page without a table": (("bench", "speed", "--markdown"), "`--markdown` applies to a table"),
    "backbone of bench speed": (("bench", "speed", "--backbone", "tinny"), "unknown preset `tinny`"),
    "backbone of collect": (("collect", "prompts.txt", "--out", "o", "--backbone", "tinny"), "unknown preset `tinny`"),
    "memory": (("generate", "x", "--memory", "nearst"), "unknown memory strategy `nearst`"),
    "memory of bench": (("bench", "--memory", "nearst"), "unknown memory strategy `nearst`"),
    "setting": (("generate", "x", "--set", "memory.retreived=3"), "unknown setting `memory.retreived`"),
    "seconds": (("generate", "x", "--seconds", "soon"), "`soon` is not a length of time"),
    "no seconds": (("generate", "x", "--seconds", "0"), "a video cannot last 0 seconds"),
    "seconds of extend": (("extend", "used", "--seconds", "nan"), "a video cannot last nan seconds"),
    "size": (("generate", "x", "--size", "100x64"), "`--size 100x64` is not a valid size of `tiny`"),
    "not a size": (("generate", "x", "--size", "big"), "`--size big` is not a valid size of `tiny`"),
    "picture": (
        ("generate", "x", "--backbone", "causal-forcing-framewise", "--image", "notes/mine.txt"),
        "`notes/mine.txt` cannot be read: it is not an image",
    ),
    "missing picture": (
        ("generate", "x", "--backbone", "causal-forcing-framewise", "--image", "no.png"),
        "`no.png` does not exist",
    ),
    "picture for a chunk-wise backbone": (("generate", "x", "--image", "no.png"), "cannot start from one picture"),
    "missing prompts": (("generate", "--prompts", "no.txt"), "no prompt file `no.txt`"),
    "empty prompts": (("generate", "--prompts", "comments.txt"), "`comments.txt` contains no prompt"),
    "unreadable prompts": (("collect", "bytes.txt", "--out", "o"), "`bytes.txt` cannot be read: it is not UTF-8 text"),
    "engine": (("generate", "--prompts", "prompts.txt", "--engine", "slurm"), "unknown engine `slurm`"),
    "engine of bench": (("bench", "--engine", "local:0"), "unknown engine `local:0`"),
    "unwritable folder of bench": (("bench", "--out", "file/bench"), "`file/bench` cannot be written"),
    "pool of bench leave-and-return": (("bench", "leave-and-return", "--pool", "serach"), "unknown pool `serach`"),
    "pool of bench returning": (("bench", "returning", "--pool", "serach"), "unknown pool `serach`"),
    "condition of bench returning": (("bench", "returning", "--condition", "nearst"), "unknown condition `nearst`"),
    "seconds of bench returning": (("bench", "returning", "--seconds", "0"), "a scene cannot go on for 0 seconds"),
    "unwritable folder of bench returning": (("bench", "returning", "--out", "file/r"), "`file/r` cannot be written"),
    "engine for one prompt": (("generate", "x", "--engine", "local:2"), "the engine `local:2` generates many videos"),
    "archive": (("generate", "x", "--archive", "dsk"), "unknown archive `dsk`"),
    "archive without retrieval": (("generate", "x", "--no-rag", "--archive", "disk"), "`--archive` applies to"),
    "encoder": (("generate", "x", "--encoder", "no.safetensors"), "no such file: `no.safetensors`"),
    "dtype": (("generate", "x", "--dtype", "float13"), "unknown dtype `float13`"),
    "attention": (("generate", "x", "--attention", "flashy"), "unknown attention backend `flashy`"),
    "eight bits": (("generate", "x", "--quantize", "int9"), "unknown kind of eight-bit layers `int9`"),
    "device": (("generate", "x", "--device", "warp"), "unknown device `warp`"),
    "memory budget": (("generate", "x", "--memory-budget", "much"), "`much` is not an amount of memory"),
    "scene of demo": (("demo", "--scene", "no.yaml"), "`no.yaml`"),
    "setting of demo": (("demo", "--set", "memory.retreived=3"), "unknown setting `memory.retreived`"),
    "demo without retrieval": (("demo", "--set", "memory.retrieved=0"), "there is nothing to compare"),
    "folder of demo": (("demo", "--out", "notes"), "`notes` exists and is not empty"),
    "run folder for demo": (("demo", "--out", "used"), "`used` exists and is not empty"),
    "unwritable folder of demo": (("demo", "--out", "file/demo"), "cannot be written: not a directory"),
    "prompt": (("generate", "an astronaut"), "`tiny` understands nothing of `an astronaut`"),
    "prompt of a file": (("generate", "--prompts", "others.txt"), "`tiny` understands nothing of `an astronaut`"),
    "prompt of a shot": (("generate", "a red circle", "--then", "2s: an astronaut"), "understands nothing of"),
    "unquoted prompt": (("generate", "a", "red", "circle"), "3 arguments instead of one prompt"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """How each command ended."""
    folder = tmp_path_factory.mktemp("requests")
    for name in ("used", "notes"):
        (folder / name).mkdir()
    (folder / "used/run.json").write_text("{}")
    (folder / "notes/mine.txt").write_text("mine")
    (folder / "file").write_text("")
    (folder / "prompts.txt").write_text("a red circle\n")
    (folder / "others.txt").write_text("a red circle\nan astronaut\n")
    (folder / "comments.txt").write_text("# no prompt yet\n\n")
    (folder / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    before = sorted(folder.rglob("*"))
    done = run_each(folder, {name: arguments for name, (arguments, _) in REFUSED.items()})
    assert sorted(folder.rglob("*")) == before  # nothing is left behind
    return done


@pytest.mark.parametrize("name", REFUSED)
def test_an_invalid_request_is_refused_before_torch_is_imported(outcomes: dict[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    assert outcome.code == 2
    assert REFUSED[name][1] in outcome.stderr
    assert outcome.stderr.startswith("error: ") and "\n\nhint: " in outcome.stderr
    assert not outcome.imported_torch


def test_a_dry_run_of_a_finished_study_imports_no_torch(tmp_path: Path) -> None:
    config = load_config("tiny")
    plans: dict[str, leave_return.Plan | returning.Plan] = {
        "leave-and-return": leave_return.Plan("search", 1, 1, config),
        "returning": returning.Plan("search", 1, 1, 60.0, ("native", "nearest"), config),
    }
    for name, plan in plans.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "settings.json").write_text(json.dumps(plan.settings))
        rows = [dict(zip(("scene", "seed", "shot"), key, strict=True)) for key in plan.row_keys()]
        (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"scene": 1, "se')
    conditions = ("--condition", "native", "--condition", "nearest")
    commands = {
        "leave-and-return": ("leave-and-return", "--scenes", "1", "--seeds", "1"),
        "returning": ("returning", "--scenes", "1", *conditions),
        "other": ("returning", "--scenes", "2", *conditions),
    }
    done = run_each(tmp_path, {name: ("bench", *words, "--dry-run") for name, words in commands.items()})
    for name in plans:
        assert (done[name].code, done[name].stdout) == (0, f"nothing is missing in {name}\n"), done[name].stderr
        assert ": 0 missing, " in done[name].stderr
    assert done["other"].code == 2
    assert "`returning` was begun with other settings: `scenes` differ" in done["other"].stderr
    assert not any(each.imported_torch for each in done.values())


def test_graphs_are_refused_by_a_build_of_torch_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "version", lambda name: "2.13.0+cpu")
    with pytest.raises(UsageError, match="`--cuda-graphs` needs a GPU"):
        options.require_recordable("auto", cuda_graphs=True, offload=False, sharing="none")
    options.require_recordable("cuda", cuda_graphs=True, offload=False, sharing="none")
    options.require_recordable("auto", cuda_graphs=False, offload=True, sharing="values")
    monkeypatch.setattr(options, "version", lambda name: "2.13.0+cu130")
    options.require_recordable("auto", cuda_graphs=True, offload=False, sharing="none")


def test_an_unquoted_prompt_is_shown_in_quotes(outcomes: dict[str, Outcome]) -> None:
    assert outcomes["unquoted prompt"].stderr.endswith('hint: quote the prompt: `llrag generate "a red circle"`\n')


def test_valid_sizes_are_named(outcomes: dict[str, Outcome]) -> None:
    assert "multiples of 32 pixels, for example 128x128" in outcomes["size"].stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("2m", 120),
        ("1:30", 90),
        ("1m30s", 90),
        ("1m30", 90),
        ("0.5m", 30),
        ("1h", 3600),
        ("1:00:05", 3605),
        ("0:07.5", 7.5),
        ("2.5", 2.5),
        ("1e2", 100),
    ],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "2x", "1:", "m2", "1 hour", "1:2:3:4"])
def test_other_lengths_of_time_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a length of time"):
        parse_seconds(text)


def test_lines_with_a_hash_are_comments(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("# two prompts\na red circle\n\n  # another comment\n  a #1 sign  \n")
    assert read_prompt_file(file) == ["a red circle", "a #1 sign"]


def test_another_size_is_generated_and_compared_by_average_pooling(llrag: Llrag, tmp_path: Path) -> None:
    few = ("--set", "sampler.steps=[1000]", "--seconds", "0:09", "--json")
    done = llrag("generate", "a red circle", "--size", "256x192", "--out", "run", *few)
    assert done.returncode == 0, done.stderr
    assert "at 256x192 frames are compared by average pooling (`memory.keys=average`)" in " ".join(done.stderr.split())
    record = json.loads(done.stdout)
    assert record["latent_shape"] == [8, 12, 16]
    assert (record["seconds"], record["config"]["memory"]["keys"]) == (9, "average")
    chosen = llrag("presets", "show", "tiny", "--no-rag", "--set", "backbone.width=16")
    assert "width: 16" in chosen.stdout
