"""``run.json``: read back as it was written, refused by name otherwise, and compared setting by setting."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llrag_cli.cache.tiers import TIERS
from llrag_cli.errors import (
    DamagedRunError,
    FolderNotEmptyError,
    LlragError,
    NotARunError,
    RunDiffersError,
    RunExistsError,
    RunSchemaError,
    UnwritableError,
)
from llrag_cli.presets import load_config
from llrag_cli.runs.folder import BlockMemory, RunFolder, memory_line, unused_folder
from llrag_cli.runs.progress import Progress
from llrag_cli.runs.record import RunRecord, differing, parse_record, require_same
from llrag_cli.runs.statistics import ArchiveUse, peak_memory
from llrag_cli.scenes.timeline import ReferenceSpan, next_shot
from runs.records import record_of

FILE = Path("run/run.json")


def content(**changes: Any) -> str:
    return json.dumps(json.loads(record_of().to_json()) | changes)


def test_a_record_is_read_back(tmp_path: Path) -> None:
    folder, record = RunFolder(tmp_path), record_of()
    folder.write_record(record)
    assert folder.read_record() == record
    assert json.loads(folder.record.read_text())["archive"]["hit_rate"] == 0.75


TIMELINE = json.loads(record_of().to_json())["timeline"]
SHOT = TIMELINE["shots"][0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{half", "not valid JSON"),
        ("[]", "input should be an object"),
        ("{}", "`status`: field required"),
        ("9" * 5000, "a number is too long"),
        ("[" * 100_000, "nested too deep"),
        (content(seconds=float("inf")), "`Infinity` is not finite"),
        (content(seconds=float("nan")), "`NaN` is not finite"),
        (content(seconds=-1), "`seconds`"),
        (content(fps=0), "`fps`"),
        (content(fps=True), "`fps`"),
        (content(latent_frames=10**30), "`latent_frames`"),
        (content(latent_shape=[8, 8, 10**9]), "`latent_shape.2`"),
        (content(latent_shape=[8, 9, 8]), "not those of `config.backbone`"),
        (content(latent_frames=7), "7 latent frames are not whole blocks of 3"),
        (content(video_frames_written=-5), "`video_frames_written`"),
        (content(resumed_at=[-1]), "`resumed_at.0`"),
        (content(status="done"), "`status`"),
        (content(dtype="int8"), "`dtype`"),
        (content(timeline=TIMELINE | {"shots": []}), "`timeline.shots`"),
        (content(timeline=TIMELINE | {"shots": [SHOT | {"start": 1}]}), "must begin at block 0"),
        (content(timeline=TIMELINE | {"shots": [SHOT, SHOT]}), "must follow each other without gaps"),
        (content(timeline=TIMELINE | {"shots": [SHOT | {"stop": 3}]}), "`timeline` has 9 latent frames, not 6"),
        (content(timeline=TIMELINE | {"fps": 9}), "are not those of `config.backbone`"),
        (content(speed=3), "`speed`: extra inputs are not permitted"),
    ],
)
def test_a_damaged_record_is_one_sentence(text: str, problem: str) -> None:
    with pytest.raises(DamagedRunError) as raised:
        parse_record(text, FILE)
    assert raised.value.problem.startswith("`run/run.json` is damaged: ")
    assert problem in raised.value.problem and "\n" not in raised.value.problem


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema_version": 1}, "has schema 1, written by an earlier version; this version reads schema 3"),
        ({"schema_version": 4}, "has schema 4, written by a later version; this version reads schema 3"),
    ],
)
def test_a_record_of_another_schema_is_refused_by_name(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(RunSchemaError, match=f"`run/run.json` {problem}"):
        parse_record(content(**changes), FILE)


def test_a_record_without_a_schema_is_of_the_first_one() -> None:
    old = json.loads(content())
    del old["schema_version"]
    with pytest.raises(RunSchemaError, match="has schema 1"):
        parse_record(json.dumps(old), FILE)


def test_changes_are_validated() -> None:
    assert record_of().updated(status="failed").status == "failed"
    with pytest.raises(ValueError, match="seconds"):
        record_of().updated(seconds=-1)


def test_differing_settings_are_named() -> None:
    before = record_of()
    config = load_config("tiny", settings=["memory.guard=1", "sampler.steps=[1000]"])
    now = before.opening_with(prompt="a dog", image=Path("a.png"))
    now = now.updated(seed=1, dtype="bfloat16", config=config)
    names = ["prompt", "seed", "image", "dtype", "memory.guard", "sampler.steps"]
    assert differing(before, now) == names
    with pytest.raises(RunDiffersError, match="`run` was started with other settings: `prompt`, `seed`") as raised:
        require_same(before, now, Path("run"))
    assert raised.value.names == tuple(names)


def test_what_does_not_change_the_video_does_not_differ() -> None:
    before = record_of()
    later = before.updated(
        status="failed",
        seconds=9.0,
        device="cuda:0",
        config=before.config.model_copy(update={"name": "mine", "about": "the same"}),
    )
    shot = next_shot(before.timeline, "a dog", start=2, stop=6)
    assert differing(before.with_timeline(before.timeline.with_shot(shot)), later) == []
    assert differing(before, before.lasting(20)) == []


def test_shots_and_references_differ() -> None:
    cut = next_shot(record_of().timeline, "a dog", start=2, stop=6, cut=True)
    one = record_of().with_timeline(record_of().timeline.with_shot(cut))
    other = one.with_timeline(record_of().timeline.with_shot(cut.model_copy(update={"prompt": "a fox"})))
    assert differing(one, other) == ["shots"]
    assert differing(record_of(), one) == ["shots"]  # the run does not have what is asked for
    mara = ReferenceSpan(name="mara", path=Path("mara.png"), latent_frames=1)
    assert differing(one, one.with_timeline(one.timeline.model_copy(update={"references": (mara,)}))) == ["references"]


def test_a_record_of_schema_2_is_read() -> None:
    old = json.loads(content())
    del old["timeline"], old["title"]
    old |= {"schema_version": 2, "image": "cat.png", "latent_frames": 9, "video_frames": 33}
    old["prompt_schedule"] = [{"block": 0, "prompt": "a cat"}, {"block": 2, "prompt": "a dog"}]
    record = parse_record(json.dumps(old), FILE)
    first, second = record.timeline.shots
    assert (first.prompt, first.blocks, first.image, first.given_blocks) == ("a cat", range(2), Path("cat.png"), 1)
    assert (second.prompt, second.blocks, second.kind) == ("a dog", range(2, 3), "switch")
    assert parse_record(record.to_json(), FILE) == record
    for damage in ({"prompt_schedule": []}, {"prompt_schedule": 3}, {"latent_frames": "x"}, {"config": {}}):
        with pytest.raises(DamagedRunError):
            parse_record(json.dumps(old | damage), FILE)


def test_exact_tiers_of_the_archive_give_the_same_video() -> None:
    records: dict[str, RunRecord] = {
        tier: record_of(config=load_config("tiny", settings=[f"memory.archive={tier}"])) for tier in ("auto", *TIERS)
    }
    exact = {"auto", "device", "host", "disk"}
    for one, before in records.items():
        for other, now in records.items():
            same = one == other or {one, other} <= exact
            assert differing(before, now) == ([] if same else ["memory.archive"])


def test_folders_are_checked_before_work(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.require_free()
    folder.require_writable()
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    with pytest.raises(NotARunError, match="no run folder"):
        folder.read_record()
    folder.path.mkdir()
    folder.require_free()
    with pytest.raises(NotARunError, match=r"it has no run\.json"):
        folder.read_record()
    (folder.path / "notes.txt").write_text("mine")
    with pytest.raises(FolderNotEmptyError):
        folder.require_free()
    folder.write_record(record_of())
    with pytest.raises(RunExistsError):
        folder.require_free()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file/run", tmp_path / ("x" * 300)):
        with pytest.raises(UnwritableError, match="cannot be written: "):
            RunFolder(path).require_writable()


def test_a_name_that_is_taken_is_counted(tmp_path: Path) -> None:
    made = []
    for _ in range(4):
        made.append(unused_folder(tmp_path, "a-red-circle"))
        made[-1].mkdir()
    assert [path.name for path in made] == ["a-red-circle", *(f"a-red-circle-{number}" for number in (2, 3, 4))]


def test_a_folder_that_cannot_be_created_is_refused() -> None:
    if not Path("/proc/self").exists():
        pytest.skip("needs /proc")
    with pytest.raises(UnwritableError):
        RunFolder(Path("/proc/run")).require_writable()


def test_records_and_folders_need_no_torch() -> None:
    modules = ("runs.folder", "runs.record", "runs.progress", "runs.statistics", "batch.executors", "files.prompts")
    imports = "; ".join(f"import llrag_cli.{module}" for module in modules)
    check = f"{imports}; import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_errors_of_the_library_name_no_flag() -> None:
    errors: list[LlragError] = [
        RunExistsError(FILE),
        FolderNotEmptyError(FILE),
        UnwritableError(FILE, "reason"),
        NotARunError(FILE),
        DamagedRunError(FILE, "reason"),
        RunSchemaError(FILE, schema=1, supported=2),
        RunDiffersError(FILE, ["seed"]),
    ]
    for error in errors:
        assert error.problem and error.hint
        assert "--" not in error.problem + error.hint and "llrag " not in error.problem + error.hint


def test_a_video_that_has_not_begun_has_taken_no_time() -> None:
    begun = Progress(blocks=4)
    assert (begun.done, begun.resumed_at, begun.elapsed, begun.speed) == (0, 0, 0, 0)
    assert (begun.seconds_of_video, begun.new_seconds, begun.retrieved) == (0, 0, ())


def test_the_use_of_an_archive_adds_up() -> None:
    nothing = ArchiveUse(tier="host")
    assert nothing == ArchiveUse(tier="host", retrieved=0, moved=0) and nothing.hit_rate is None
    some = nothing.plus(retrieved=6, moved=0).plus(retrieved=2, moved=2)
    assert (some.retrieved, some.moved, some.hit_rate) == (8, 2, 0.75)


def test_speed_is_that_of_new_video() -> None:
    assert Progress(blocks=9, resumed_at=3, done=5, seconds_of_video=7.5, new_seconds=3.0, elapsed=2.0).speed == 1.5
    begun = Progress(blocks=9)
    assert begun.speed == begun.seconds_of_video == begun.done == 0


def test_peak_memory_is_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=3))
    for platform, size in (("linux", 3072), ("darwin", 3)):  # Linux counts in units of 1024 bytes
        monkeypatch.setattr("sys.platform", platform)
        assert peak_memory(torch.device("cpu")) == size


def test_the_memory_log_is_readable_as_it_is() -> None:
    line = memory_line(2, BlockMemory(6, (1, -1), (0.12345678, 1.0), ("Bjorn på taket", "猫")))
    assert line == (
        b'{"block": 2, "frame": 6, "retrieved": [1, -1], "similarities": [0.123457, 1.0], "sources": '
        + '["Bjorn på taket", "猫"]}\n'.encode()
    )
    assert memory_line(0, BlockMemory(0)) == b'{"block": 0, "frame": 0, "retrieved": [], "similarities": []}\n'
