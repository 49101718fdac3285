"""``llrag download metrics``: repositories of the hub, and files that web servers have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from pydantic import ValidationError

from conftest import Llrag
from hub import Hub
from llrag_cli.download.catalogue import Source, catalogue, choose
from official_metrics import metric_files, metric_repos, serve

RAFT = "raft_large_C_T_V1-22a6c225.pth"


@pytest.fixture(scope="module")
def repos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    return metric_repos(tmp_path_factory.mktemp("repos"))


@pytest.fixture
def hub(repos: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub({name: dict(files) for name, files in repos.items()}, web=metric_files()) as running:
        serve(running, tmp_path / "hf", monkeypatch)
        yield running


def test_everything_is_brought_once(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    done = llrag("download", "metrics", "--to", "weights")
    assert done.returncode == 0, done.stderr
    found = sorted(file.relative_to(tmp_path / "weights").as_posix() for file in tmp_path.glob("weights/**/*.*"))
    assert found == [
        "download.lock",
        "downloads.json",
        "metrics/clip-vit-base-patch32/config.json",
        "metrics/clip-vit-base-patch32/pytorch_model.bin",
        "metrics/clip-vit-large-patch14/config.json",
        "metrics/clip-vit-large-patch14/pytorch_model.bin",
        "metrics/dino-vitb16/config.json",
        "metrics/dino-vitb16/pytorch_model.bin",
        "metrics/dinov2-base/config.json",
        "metrics/dinov2-base/pytorch_model.bin",
        "metrics/raft_large_C_T_V1.pth",
        "metrics/sa_0_4_vit_l_14_linear.pth",
        "metrics/subject_mapping_table.yaml",
    ]
    assert (tmp_path / "weights/metrics/raft_large_C_T_V1.pth").read_bytes() == hub.web[RAFT]
    record = json.loads((tmp_path / "weights/downloads.json").read_text())
    assert record["metrics/raft_large_C_T_V1.pth"]["licence"] == "BSD-3-Clause"
    hub.fetched.clear()
    again = llrag("download", "metrics", "--to", "weights")
    assert not hub.fetched
    assert "0 B to download in 0 files, 11 files already here" in again.stderr.replace("\n", " ")


def test_a_plan_names_licences_and_sizes(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    rows = json.loads(llrag("download", "metrics", "--to", "weights", "--dry-run", "--json").stdout)
    assert len(rows) == 11 and not hub.fetched and not (tmp_path / "weights").exists()
    assert all(row["licence"] in ("Apache-2.0", "MIT", "BSD-3-Clause") for row in rows)
    raft = next(row for row in rows if row["item"] == "raft")
    assert (raft["state"], raft["bytes"]) == ("missing", len(hub.web[RAFT]))
    listed = json.loads(llrag("download", "metrics", "--list", "--json").stdout)
    assert sum(row["bytes"] for row in listed) == pytest.approx(3.0e9, rel=0.02)


def test_a_damaged_file_of_the_web_is_named_and_removed(hub: Hub, llrag: Llrag, tmp_path: Path) -> None:
    hub.corrupt.add(RAFT)
    done = llrag("download", "metrics", "raft", "--to", "weights")
    assert done.returncode == 1
    assert f"`pytorch/vision/{RAFT}` is damaged: it has SHA-256" in done.stderr
    assert not list((tmp_path / "weights/metrics").iterdir())
    hub.corrupt.clear()
    hub.breaks[RAFT] = 100
    broken = llrag("download", "metrics", "raft", "--to", "weights")
    assert broken.returncode == 1 and f"the connection to {hub.url} failed" in broken.stderr
    assert not list((tmp_path / "weights/metrics").iterdir())
    assert llrag("download", "metrics", "raft", "--to", "weights").returncode == 0


@pytest.mark.parametrize("name", [RAFT, "sa_0_4_vit_l_14_linear.pth", "subject_mapping_table.yaml"])
def test_a_file_of_zeros_is_found(hub: Hub, llrag: Llrag, tmp_path: Path, name: str) -> None:
    hub.corrupt.add(name)
    done = llrag("download", "metrics", "raft", "aesthetic", "mapping", "--to", "weights")
    assert done.returncode == 1
    assert f"/{name}` is damaged: it has SHA-256" in done.stderr
    assert not list(tmp_path.rglob(f"*{name.rpartition('-')[0] or name}*"))


def test_web_servers_that_hang_or_do_not_stop(
    hub: Hub, llrag: Llrag, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = "subject_mapping_table.yaml"
    hub.endless.add(table)
    done = llrag("download", "metrics", "mapping", "--to", "weights")
    assert done.returncode == 1
    assert f"/{table}` sends more than the 1.05 MB that were expected" in done.stderr
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    for method in ("GET", "HEAD"):
        hub.hangs.add((method, table))
        done = llrag("download", "metrics", "mapping", "--to", "weights")
        assert done.returncode == 1 and f"the connection to {hub.url} failed" in done.stderr
    assert not list((tmp_path / "weights/metrics").iterdir())


def test_files_of_web_servers_have_hashes() -> None:
    source = catalogue().metrics["mapping"].sources["vbench"].model_dump()
    source["files"][0]["sha256"] = None
    with pytest.raises(ValidationError, match="has neither `sha256` nor `blob`"):
        Source.model_validate(source)


def test_what_web_servers_refuse(hub: Hub, llrag: Llrag, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status["subject_mapping_table.yaml"] = 503
    done = llrag("download", "metrics", "mapping", "--to", "weights")
    assert done.returncode == 1
    assert f"{hub.url} answered 503 for `{hub.url}/web/subject_mapping_table.yaml`" in done.stderr
    del hub.status["subject_mapping_table.yaml"]
    assert llrag("download", "metrics", "mapping", "--to", "weights").returncode == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert llrag("download", "metrics", "mapping", "--to", "weights").returncode == 0
    lacking = llrag("download", "metrics", "aesthetic", "--to", "weights")
    assert lacking.returncode == 1 and "HF_HUB_OFFLINE is set" in lacking.stderr


def test_names(llrag: Llrag) -> None:
    done = llrag("download", "metrics", "dinov3")
    assert done.returncode == 2 and "did you mean `dinov2`?" in done.stderr
    assert [name for name, _ in choose("metrics", ["all"])] == list(catalogue().metrics)
