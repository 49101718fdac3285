"""`llrag download` against a hub on this machine: plans, transfers that break, and what is left behind."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from huggingface_hub import constants
from safetensors.torch import load_file

from conftest import Llrag
from hub import Hub, point_to
from llrag_cli.download import fetch as fetching
from llrag_cli.download import plan as planning
from llrag_cli.download import transfers
from llrag_cli.download.catalogue import catalogue, choose
from llrag_cli.download.convert import convert
from llrag_cli.download.hub import Advance, list_files
from llrag_cli.errors import LlragError
from llrag_cli.files.tensors import stored_dtype
from official import golden_generator, official_repos

SELF_FORCING = "checkpoints/self_forcing.pt"
FOLDER = "Wan2.1-T2V-1.3B-Diffusers"


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    return official_repos(tmp_path_factory.mktemp("official"))


@pytest.fixture
def hub(repos: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub, and an empty cache to fetch into."""
    with Hub({name: dict(files) for name, files in repos.items()}) as running:
        point_to(running, tmp_path / "hf", monkeypatch)
        yield running


def leftovers(*folders: Path) -> list[str]:
    """Files that are not whole."""
    found = [file for folder in folders if folder.exists() for file in folder.rglob("*")]
    return [file.name for file in found if file.name.endswith((".partial", ".incomplete"))]


def test_a_backbone_brings_what_it_needs(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    done = llrag("download", "weights", "self-forcing", "--to", "weights")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "weights\n"
    weights = tmp_path / "weights"
    state = load_file(weights / "self_forcing.safetensors")
    assert {name.removeprefix("model.") for name in golden_generator()} == set(state)
    assert state["blocks.0.self_attn.q.weight"].dtype == torch.bfloat16
    assert state["blocks.0.modulation"].dtype == torch.float32  # kept exact
    assert stored_dtype(weights / "self_forcing.safetensors") == "bfloat16"
    assert (weights / "ae_latent_mem.safetensors").exists()
    for part in ("vae/config.json", "text_encoder/model.safetensors.index.json", "tokenizer/tokenizer.json"):
        assert (weights / FOLDER / part).exists()
    assert not (weights / "causal_forcing.safetensors").exists()
    assert leftovers(weights, tmp_path / "hf") == []
    record = json.loads((weights / "downloads.json").read_text())
    assert record["self_forcing.safetensors"]["repo"] == "qixinhu11/LongLive-RAG"
    assert record["self_forcing.safetensors"]["dtype"] == "bfloat16"


def test_what_is_there_is_not_fetched_again(hub: Hub, llrag: Llrag) -> None:
    llrag("download", "weights", "encoder", "--to", "weights")
    hub.fetched.clear()
    done = llrag("download", "weights", "encoder", "--to", "weights")
    assert done.returncode == 0
    assert not hub.fetched
    assert "0 B to download in 0 files, 1 file already here" in done.stderr.replace("\n", " ")
    forced = llrag("download", "weights", "encoder", "--to", "weights", "--force", "--json")
    assert json.loads(forced.stdout)[0]["state"] == "cached"


def test_another_type_or_another_source_replaces_what_is_there(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    llrag("download", "weights", "causal-forcing", "--only", "--to", "weights")
    file = tmp_path / "weights/causal_forcing.safetensors"
    llrag("download", "weights", "causal-forcing", "--only", "--to", "weights", "--dtype", "float32")
    assert stored_dtype(file) == "float32"
    llrag("download", "weights", "causal-forcing", "--only", "--to", "weights", "--source", "authors")
    assert json.loads((tmp_path / "weights/downloads.json").read_text())[file.name]["repo"] == "zhuhz22/Causal-Forcing"


def test_a_file_placed_by_hand_is_left_alone(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    mine = tmp_path / "weights/self_forcing.safetensors"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    llrag("download", "weights", "self-forcing", "--only", "--to", "weights")
    assert mine.read_bytes() == b"mine"


def test_a_dry_run_fetches_nothing(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    done = llrag("download", "weights", "longlive", "--to", "weights", "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["item"] for row in rows} == {"longlive", "encoder", "vae", "text-encoder"}
    assert all(row["state"] == "missing" and row["bytes"] > 0 for row in rows)
    assert not hub.fetched
    assert not (tmp_path / "weights").exists()


def test_the_list_needs_no_hub(llrag: Llrag) -> None:
    rows = json.loads(llrag("download", "weights", "--list", "--json").stdout)
    assert {"self-forcing", "causal-forcing", "longlive", "encoder", "vae", "text-encoder"} <= {r["name"] for r in rows}
    assert all(row["licence"] and row["bytes"] for row in rows)
    assert "Apache-2.0" in llrag("download", "weights", "--list").stdout


def test_prompts(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    done = llrag("download", "prompts", "moviegenbench", "--to", "prompts")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "prompts/moviegenbench_128_refined.txt").read_bytes() == b"a cat\n"


def test_a_broken_transfer_goes_on_where_it_stopped(
    hub: Hub, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)  # what is lost when a connection drops
    hub.breaks[SELF_FORCING] = 1_000_000
    done = llrag("download", "weights", "self-forcing", "--only", "--to", "weights")
    assert done.returncode == 0, done.stderr
    assert hub.ranges == [f"bytes={15 << 16}-"]
    assert (tmp_path / "weights/self_forcing.safetensors").exists()


def test_an_interrupt_keeps_what_is_whole(
    hub: Hub, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = fetching.check

    def interrupted(file: planning.PlannedFile, cached: Path, *, advance: Advance) -> None:
        if file.path == SELF_FORCING:
            raise KeyboardInterrupt
        arrived(file, cached, advance=advance)

    monkeypatch.setattr(fetching, "check", interrupted)
    done = llrag("download", "weights", "encoder", "self-forcing", "--only", "--to", "weights")
    assert done.returncode == 130
    assert "complete files are kept, and the same command continues" in done.stderr.replace("\n", " ")
    weights = tmp_path / "weights"
    assert (weights / "ae_latent_mem.safetensors").exists()
    assert not (weights / "self_forcing.safetensors").exists()
    monkeypatch.setattr(fetching, "check", arrived)
    hub.fetched.clear()
    assert llrag("download", "weights", "encoder", "self-forcing", "--only", "--to", "weights").returncode == 0
    assert not hub.fetched  # the file itself had arrived
    assert leftovers(weights, tmp_path / "hf") == []


def test_a_wrong_hash_is_found_and_removed(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    hub.corrupt.add(SELF_FORCING)
    done = llrag("download", "weights", "self-forcing", "--only", "--to", "weights")
    assert done.returncode == 1
    assert "is damaged: it has SHA-256" in done.stderr
    assert not list((tmp_path / "weights").glob("*.safetensors"))
    assert not [file for file in (tmp_path / "hf").rglob("*") if file.is_file() and file.stat().st_size > 10_000]
    hub.corrupt.clear()
    assert llrag("download", "weights", "self-forcing", "--only", "--to", "weights").returncode == 0


@pytest.mark.parametrize(
    ("key", "status", "headers", "said"),
    [
        ("qixinhu11/LongLive-RAG", 401, {}, "the hub denied access to `qixinhu11/LongLive-RAG` (401)"),
        (
            "qixinhu11/LongLive-RAG",
            404,
            {"X-Error-Code": "RepoNotFound"},
            "the hub has no repository `qixinhu11",
        ),
        ("qixinhu11/LongLive-RAG", 403, {"X-Error-Code": "GatedRepo"}, "requires you to accept its terms"),
        ("qixinhu11/LongLive-RAG", 500, {}, "the hub answered 500 for"),
        (SELF_FORCING, 404, {"X-Error-Code": "EntryNotFound"}, "is not on the hub any more"),
        (SELF_FORCING, 500, {}, "the hub answered 500 for"),
        (SELF_FORCING, 401, {}, "the hub denied access to"),
    ],
)
def test_what_the_hub_refuses(
    hub: Hub, llrag: Llrag, tmp_path: Path, key: str, status: int, headers: dict[str, str], said: str
) -> None:
    hub.status[key], hub.headers = status, headers
    done = llrag("download", "weights", "self-forcing", "--only", "--to", "weights")
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1
    assert said in done.stderr
    assert "hint: " in done.stderr
    assert leftovers(tmp_path) == []
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_file_that_moved_is_named(hub: Hub, llrag: Llrag) -> None:
    del hub.repos["qixinhu11/LongLive-RAG"][SELF_FORCING]
    done = llrag("download", "weights", "self-forcing", "--to", "weights")
    assert done.returncode == 1
    assert f"`{SELF_FORCING}` is not in `qixinhu11/LongLive-RAG`" in done.stderr
    assert "update llrag; or try `--source authors`" in done.stderr.replace("\n", " ")


def test_no_hub_at_all(hub: Hub, llrag: Llrag) -> None:
    hub.__exit__()
    done = llrag("download", "weights", "encoder", "--to", "weights")
    assert done.returncode == 1
    assert f"the connection to {hub.url} failed" in done.stderr


def test_a_disk_too_small_stops_before_a_byte(
    hub: Hub, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(planning.shutil, "disk_usage", lambda place: small)
    done = llrag("download", "weights", "self-forcing", "--to", "weights")
    assert done.returncode == 1
    assert "which has 100 kB" in done.stderr
    assert not hub.fetched


def test_a_disk_that_fills_up_leaves_nothing_half(
    hub: Hub, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("llrag_cli.download.convert.write_file", full)
    done = llrag("download", "weights", "self-forcing", "--only", "--to", "weights")
    assert done.returncode == 1
    assert "could not be written: no space left on device" in done.stderr
    assert [file.name for file in (tmp_path / "weights").iterdir()] == ["download.lock"]


def test_offline_with_and_without_the_cache(
    hub: Hub, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = llrag("download", "weights", "encoder", "vae", "--to", "one")
    assert done.returncode == 1
    assert "HF_HUB_OFFLINE is set" in done.stderr
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    llrag("download", "weights", "encoder", "vae", "--to", "one")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.fetched.clear()
    done = llrag("download", "weights", "encoder", "vae", "--to", "two")
    assert done.returncode == 0, done.stderr
    assert not hub.fetched
    assert (tmp_path / "two/ae_latent_mem.safetensors").exists()
    assert (tmp_path / "two" / FOLDER / "vae/config.json").exists()
    records = [json.loads((tmp_path / name / "downloads.json").read_text()) for name in ("one", "two")]
    assert records[0] == records[1]
    snapshot = next((tmp_path / "hf/models--Wan-AI--Wan2.1-T2V-1.3B-Diffusers/snapshots").iterdir())
    (snapshot / "text_encoder").mkdir()
    (snapshot / "text_encoder/model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors"}}')
    incomplete = llrag("download", "weights", "text-encoder", "--to", "three")
    assert incomplete.returncode == 1
    assert "`1.safetensors` of `model.safetensors.index.json` is not in the hub's cache" in incomplete.stderr


def test_a_new_commit_with_the_same_files_brings_nothing(
    hub: Hub, llrag: Llrag, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = ("download", "weights", "causal-forcing", "--only", "--to", "weights", "--prune", "--json")
    llrag(*download)
    monkeypatch.setattr("hub.COMMIT", "f" * 40)
    hub.fetched.clear()
    row = json.loads(llrag(*download).stdout)[0]
    assert (row["commit"], row["state"]) == ("f" * 40, "present")
    assert not hub.fetched


def test_remains_of_a_killed_conversion_are_removed(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    (weights / "self_forcing.safetensors.x1.partial").mkdir(parents=True)
    for name in ("self_forcing.safetensors.x1.partial/.tmp1", "self_forcing.safetensors.12.partial", "mine.partial"):
        (weights / name).write_bytes(b"half")
    assert llrag("download", "weights", "self-forcing", "--only", "--to", "weights").returncode == 0
    assert leftovers(weights) == ["mine.partial"]


def test_two_downloads_into_one_folder(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    with FileLock(tmp_path / "weights/download.lock"):
        done = llrag("download", "weights", "encoder", "--to", "weights")
    assert done.returncode == 1
    assert "another process is downloading into `weights`" in done.stderr
    assert not hub.fetched


def test_the_umask_decides_who_may_read_converted_weights(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        llrag("download", "weights", "causal-forcing", "--only", "--to", "weights")
    finally:
        os.umask(before)
    assert (tmp_path / "weights/causal_forcing.safetensors").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("self-forcin",), "unknown item `self-forcin`"),
        (("--dtype", "bfloat"), "unknown dtype `bfloat`"),
        (("--to", "file/weights"), "`file/weights` cannot be created: "),
    ],
)
def test_wrong_input_is_refused_before_the_client_is_imported(
    tmp_path: Path, arguments: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "file").touch()
    code = (
        "import sys\n"
        "from llrag_cli.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'huggingface_hub'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "download", "weights", *arguments]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert problem in done.stderr


def test_the_library_names_no_option_and_no_command() -> None:
    folder = Path(fetching.__file__).parent
    for file in folder.glob("*.py"):
        assert not re.search(r"[`\s]--[a-z]|`llrag ", file.read_text()), file.name


def test_pruned_originals_are_gone(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    llrag("download", "weights", "causal-forcing", "vae", "--only", "--to", "weights", "--prune")
    cached = [file.name for file in (tmp_path / "hf").rglob("*") if file.is_file()]
    assert "causal_forcing.pt" not in cached
    assert "diffusion_pytorch_model.safetensors" in cached


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    from llrag_cli import LlragError

    source = tmp_path / "wrong.pt"
    state = golden_generator()
    state["model.blocks.0.extra.weight"] = torch.zeros(2)
    torch.save({"generator": state}, source)
    with pytest.raises(LlragError, match=r"has unknown `blocks\.0\.extra\.weight`"):
        convert(source, tmp_path / "out.safetensors", kind="generator", ema=False, dtype="bfloat16")
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("weights", "self-forcin"), "did you mean `self-forcing`?"),
        (("weights", "self-forcing", "--source", "author"), "did you mean `authors`?"),
        (("weights", "all", "--source", "author"), "unknown source `author`"),
        (("weights", "--dtype", "bfloat"), "did you mean `bfloat16`?"),
        (("prompts", "movies"), "unknown item `movies`"),
    ],
)
def test_usage(llrag: Llrag, arguments: tuple[str, ...], said: str) -> None:
    done = llrag("download", *arguments)
    assert done.returncode == 2
    assert said in done.stderr


def test_the_catalogue_is_whole() -> None:
    everything = choose("weights", ["all"])
    optional = [name for name, item in catalogue().weights.items() if item.optional]
    more = ["self-gradient-forcing", "self-gradient-forcing-framewise", "memflow"]
    assert optional == [*more, "tiny-decoder"]
    assert [name for name, _ in everything] == [name for name in catalogue().weights if name not in optional]
    assert [name for name, _ in choose("weights", ["all", *optional])] == list(catalogue().weights)
    targets = [file.to for _, source in choose("weights", ["all", *optional]) for file in source.files]
    assert len(targets) == len(set(targets))
    assert [name for name, _ in choose("weights", ["longlive"])] == ["longlive", "encoder", "vae", "text-encoder"]


# --- servers that do not keep to what they said


PROMPTS = "checkpoints/moviegenbench_128_refined.txt"


def test_a_small_file_of_zeros_is_found_and_removed(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    hub.corrupt.add(PROMPTS)  # it is in git, not in LFS: the hub has no SHA-256 of it
    done = llrag("download", "prompts", "moviegenbench", "--to", "prompts")
    assert done.returncode == 1
    assert "is damaged: it has git blob id" in done.stderr
    assert not list(tmp_path.rglob("*.txt"))
    hub.corrupt.clear()
    assert llrag("download", "prompts", "moviegenbench", "--to", "prompts").returncode == 0
    entry = json.loads((tmp_path / "prompts/downloads.json").read_text())["moviegenbench_128_refined.txt"]
    assert entry["blob"] == hashlib.sha1(b"blob 6\0a cat\n").hexdigest()
    assert entry["sha256"] == hashlib.sha256(b"a cat\n").hexdigest()


def test_a_small_file_damaged_in_the_cache_is_found(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    llrag("download", "prompts", "moviegenbench", "--to", "one")
    (blob,) = (file for file in (tmp_path / "hf").rglob("blobs/*") if file.is_file())
    (tmp_path / "one").rename(tmp_path / "moved")
    blob.chmod(0o600)
    blob.write_bytes(b"a dog\n")
    done = llrag("download", "prompts", "moviegenbench", "--to", "two")
    assert done.returncode == 1 and "is damaged: it has git blob id" in done.stderr


def test_what_moved_after_the_plan_is_an_error(
    hub: Hub, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = fetching.fetch_from_hub

    def later(repo: str, path: str, commit: str, *, size: int, advance: Advance) -> Path:
        hub.moved[path] = "f" * 40
        return fetch(repo, path, commit, size=size, advance=advance)

    monkeypatch.setattr(fetching, "fetch_from_hub", later)
    done = llrag("download", "prompts", "moviegenbench", "--to", "prompts")
    assert done.returncode == 1
    assert f"`qixinhu11/LongLive-RAG/{PROMPTS}` changed after the download was planned" in done.stderr
    assert not list((tmp_path / "prompts").glob("*.txt"))


@pytest.mark.parametrize("revision", ["main", "a" * 40])
def test_a_plan_is_of_one_commit(hub: Hub, revision: str) -> None:
    repo, other = "qixinhu11/LongLive-RAG", "checkpoints/vidprom_filtered_extended.txt"
    if revision == "main":
        hub.moved[other] = "f" * 40
    with pytest.raises(LlragError, match=f"`{repo}` changed while it was listed"):
        list_files(repo, revision, [PROMPTS, other])


def test_every_file_is_asked_for_at_one_commit(hub: Hub, llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    original = fetching.fetch_from_hub

    def recorded(repo: str, path: str, commit: str, *, size: int, advance: Advance) -> Path:
        asked.append((path, commit))
        monkeypatch.setattr("hub.COMMIT", "e" * 40)  # `main` moves on while files are fetched
        hub.moved |= dict.fromkeys(hub.repos[repo], commit)  # a commit that is asked for by name stays what it is
        return original(repo, path, commit, size=size, advance=advance)

    monkeypatch.setattr(fetching, "fetch_from_hub", recorded)
    done = llrag("download", "weights", "vae", "--to", "weights")
    assert done.returncode == 0, done.stderr
    assert len(asked) > 1 and len({commit for _, commit in asked}) == 1


@pytest.mark.parametrize(
    ("method", "key"),
    [("GET", "qixinhu11/LongLive-RAG"), ("POST", "qixinhu11/LongLive-RAG"), ("HEAD", PROMPTS), ("GET", PROMPTS)],
)
def test_a_hub_that_does_not_answer(
    hub: Hub, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, key: str
) -> None:
    hub.hangs.add((method, key))
    for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"):
        monkeypatch.setattr(constants, name, 0.05)
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 0.05, raising=False)
    done = llrag("download", "prompts", "moviegenbench", "--to", "prompts")
    assert done.returncode == 1
    assert f"the connection to {hub.url} failed while requesting `qixinhu11/LongLive-RAG" in done.stderr
    assert leftovers(tmp_path) == []


def test_a_hub_that_sends_without_end(hub: Hub, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.endless.add(PROMPTS)
    done = llrag("download", "prompts", "moviegenbench", "--to", "prompts")
    assert done.returncode == 1
    assert f"/{PROMPTS}` sends more than the 1.05 MB that were expected" in done.stderr
    assert hub.sent[PROMPTS] < 20 << 20
    assert leftovers(tmp_path) == []


def test_a_transfer_may_be_slow_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(transfers.time, "monotonic", lambda: now[0])

    def arriving(size: int, *, every: float, count: int) -> Iterator[bytes]:
        for _ in range(count):
            now[0] += every
            yield bytes(size)

    def received(chunks: Iterator[bytes], *, thinking: float = 0) -> int:
        total = 0
        for chunk in transfers.checked(chunks, "http://slow", limit=10**9):
            now[0] += thinking
            total += len(chunk)
        return total

    assert received(arriving(20_000, every=9, count=50)) == 10**6
    assert received(arriving(1, every=0.1, count=50), thinking=100) == 50  # what is slow is this program
    with pytest.raises(LlragError, match=r"`http://slow` is too slow: 7 bytes in 63 seconds"):
        received(arriving(1, every=9, count=50))
    with pytest.raises(LlragError, match=r"sends more than the 10 B"):
        list(transfers.checked(arriving(4, every=0, count=50), "http://slow", limit=10))
