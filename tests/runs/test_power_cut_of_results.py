"""A power cut, or a kill, after any write of the commands that work on finished runs, and of the studio."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from disk import CUTS, Disk, left
from llrag_cli import Pipeline, RunFolder, load_config, make_video, resume_video
from llrag_cli.files.durable import replacing
from llrag_cli.models.embedded.model import load_vae, weights_folder
from llrag_cli.models.embedded.vae import TinyDecoder
from llrag_cli.presets import with_settings
from llrag_cli.runs.decode import decode_run
from llrag_cli.runs.export import claim_folder, export_chapters, export_shots, shot_files
from llrag_cli.serve.characters import add_character, find_character
from llrag_cli.serve.plans import Upload
from llrag_cli.serve.queue import Queue
from llrag_cli.serve.settings import Limits
from serve.serving import Unserved

PROMPT = "a red circle on a blue wall"
KEPT = ("latents.safetensors", "memory.jsonl")


def states(disk: Disk) -> Iterator[dict[str, bytes]]:
    """Everything that a power cut may leave while ``disk`` was recorded, each state once."""
    known = set()
    for count in range(disk.start, len(disk.events) + 1):
        for cut in CUTS:
            files = left(disk.events[:count], *cut)
            if (key := tuple(sorted(files.items()))) not in known:
                known.add(key)
                yield files


def restored(files: dict[str, bytes], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def names(run: RunFolder) -> set[str]:
    return {path.name for path in run.path.iterdir()} - {"run.lock"}


def sampled(found: list[dict[str, bytes]], count: int) -> list[dict[str, bytes]]:
    step = max(1, len(found) // count)
    return found[step // 2 :: step]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    few = ("sampler.steps=[1000]", "memory.window=5", "memory.retrieved=1", "memory.guard=0")
    return Pipeline.load(load_config("tiny", settings=few), device="cpu")


@pytest.fixture(scope="module")
def made(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("made") / "run")
    make_video(pipeline, PROMPT, folder, seconds=2.5)
    return folder


def test_decoding_leaves_the_old_video_or_the_new_one(pipeline: Pipeline, made: RunFolder, tmp_path: Path) -> None:
    old = made.video.read_bytes()
    shutil.copytree(made.path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    decoder = TinyDecoder(load_vae(weights_folder() / "vae.safetensors"))
    config = with_settings(folder.read_record().config, ["video.crf=30"])

    def decode(run: RunFolder) -> bytes:
        decode_run(run, config, decoder, device=torch.device("cpu"))
        return run.video.read_bytes()

    disk = Disk(folder.path)
    with disk.recording():
        new = decode(folder)
    assert new != old
    found = [*states(disk)]
    assert len(found) > 10
    for files in found:
        assert files["video.mp4"] in (old, new)
        assert {name: files[name] for name in KEPT} == {name: (made.path / name).read_bytes() for name in KEPT}
        assert RunFolder(restored(files, tmp_path / "cut")).read_record().is_complete
    for files in sampled(found, 3):
        run = RunFolder(restored(files, tmp_path / "cut"))
        assert decode(run) == new
        assert names(run) == names(made)
    between = next(each for each in found if each["video.mp4"] == new and b'"crf": 30' not in each["run.json"])
    run = RunFolder(restored(between, tmp_path / "cut"))
    with pytest.warns(match="has changed since it was written"):
        resume_video(pipeline, run)
    assert run.video.read_bytes() == old  # as its record has it


def test_an_export_that_is_repeated_has_all_of_its_files_and_no_others(made: RunFolder, tmp_path: Path) -> None:
    timeline = made.read_record().timeline
    names = ["video.mp4", *(file.name for file in shot_files(timeline))]

    def export(out: Path) -> dict[str, bytes]:
        claim_folder(out, names)
        export_chapters(made.video, timeline, out / "video.mp4")
        export_shots(out / "video.mp4", timeline, out)
        return {path.name: path.read_bytes() for path in out.iterdir()}

    (tmp_path / "export").mkdir()
    disk = Disk(tmp_path / "export")
    with disk.recording():
        whole = export(tmp_path / "export")
    found = [*states(disk)]
    for files in found:
        for name, content in files.items():
            assert name.endswith(".partial") or content == whole[name]
    for files in sampled(found, 3):
        assert export(restored(files, tmp_path / "cut")) == whole


def save_picture(path: Path, *, white: bool) -> None:
    Image.new("RGB", (8, 8), "white" if white else "black").save(path, format="PNG")


WRITERS: dict[str, Callable[[Path, bool], object]] = {
    "text": lambda path, new: path.write_text("new" if new else "old"),
    "tensors": lambda path, new: save_file({"embedding": torch.full((3, 2), float(new))}, path),
    "a checkpoint": lambda path, new: torch.save({"epoch": int(new)}, path),
    "a picture": lambda path, new: save_picture(path, white=new),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_what_any_library_writes_is_there_as_a_whole(tmp_path: Path, write: Callable[[Path, bool], object]) -> None:
    """The prompt cache, trials of attention, states of a training, scene files and pictures are written so."""
    folder, target = tmp_path / "folder", tmp_path / "folder/file"
    folder.mkdir()
    contents = []
    for new in (False, True):
        disk = Disk(folder)
        with disk.recording(), replacing(target) as partial:
            write(partial, new)
        contents.append(target.read_bytes())
        seen = {files.get("file") for files in states(disk)}
        assert seen == {contents[0] if new else None, contents[-1]}
        assert [left(disk.events, *cut).get("file") for cut in CUTS] == [contents[-1]] * len(CUTS)


def test_a_write_that_was_not_synced_is_seen(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    with disk.recording():
        os.close(os.open(tmp_path / "file.partial", os.O_WRONLY | os.O_CREAT))
        (tmp_path / "file.partial").write_text("by another function")
        (tmp_path / "file.partial").replace(tmp_path / "file")
    assert left(disk.events, "kept", "kept") == {"file": b"by another function"}
    assert left(disk.events, "lost", "kept") == {"file": b""}


def test_a_character_that_is_listed_has_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, format="PNG")
    (tmp_path / "upload.png").write_bytes(content.getvalue())
    identifier = "char_" + "0" * 24
    monkeypatch.setattr("llrag_cli.serve.characters.new_id", lambda kind: identifier)
    folder = tmp_path / "runs" / identifier
    disk = Disk(folder)
    with disk.recording():
        add_character(tmp_path / "runs", "Mara", Upload(tmp_path / "upload.png", "picture"))
    listed = 0
    for files in states(disk):
        restored(files, folder)
        if find_character(tmp_path / "runs", identifier) is not None:
            listed += 1
            assert files["character.png"] == content.getvalue()
    assert listed


def test_a_kill_while_one_is_picked_leaves_a_picked_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Unserved(tmp_path / "runs")
    first = server.create(takes=3)
    group, ids = first["llrag"]["take_of"], first["llrag"]["group"]
    server.queue.pick(group, ids[0])
    kept = [(path, path.read_bytes()) for path in sorted((tmp_path / "runs").glob("*/job.json"))]
    for chosen in ids[1:]:
        for writes in range(3):
            for path, content in kept:
                path.write_bytes(content)
            left_over = iter(range(writes))

            def stopping(folder: Path, job: object, left_over: Iterator[int] = left_over) -> None:
                if next(left_over, None) is None:
                    raise KeyboardInterrupt
                (folder / "job.json").write_text(job.model_dump_json())  # type: ignore[attr-defined]

            with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
                patched.setattr("llrag_cli.serve.queue.write_job", stopping)
                Queue(tmp_path / "runs", Limits()).pick(group, chosen)
            found = Queue(tmp_path / "runs", Limits()).in_group(group)
            picked = [video.id for video in found if video.job is not None and video.job.picked]
            assert picked and set(picked) <= {ids[0], chosen}
