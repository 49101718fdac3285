"""``llrag serve``, ``studio`` and ``watch``: what is refused before a server begins, and what they print."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from conftest import Llrag
from llrag_cli import Pipeline, RunFolder, make_video
from llrag_cli.cli.serve import address_of
from llrag_cli.serve.folders import only_server
from llrag_cli.serve.running import bound
from serve.serving import MODEL, PROMPT, program


def test_a_missing_extra_is_one_sentence(llrag: Llrag, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = importlib.util.find_spec

    def without(name: str, *rest: str) -> ModuleSpec | None:
        return None if name == "fastapi" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    for command in ("serve", "studio"):
        done = llrag(command)
        assert done.returncode == 2 and not (tmp_path / "runs").exists()
        assert done.stderr == (
            "error: the server needs packages that are not installed: fastapi\n\nhint: `pip install 'llrag[serve]'`\n"
        )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--backbone", "sora-2"), "unknown preset `sora-2`"),
        (("serve", "--backbone", "longlive"), "the weights of `longlive` are incomplete"),
        (("serve", "--engine", "slurm"), "unknown engine `slurm`"),
        (("serve", "--token", "short"), "the token is shorter than 8 characters"),
        (("serve", "--device", "abacus"), "unknown device `abacus`"),
        (("serve", "--host", "203.0.113.7", "--port", "0"), "`203.0.113.7` is no address of this machine"),
        (("watch", "nowhere"), "no run folder `nowhere`"),
    ],
)
def test_what_is_wrong_is_said_at_once(llrag: Llrag, arguments: tuple[str, ...], said: str) -> None:
    done = llrag(*arguments)
    assert done.returncode in (1, 2) and said in done.stderr and "hint: " in done.stderr


def test_a_port_or_a_folder_that_is_taken_is_refused(llrag: Llrag, tmp_path: Path) -> None:
    opened = bound("127.0.0.1", 0)
    try:
        done = llrag("serve", "--port", str(opened.getsockname()[1]))
    finally:
        opened.close()
    assert done.returncode == 2 and "cannot be used: address already in use" in done.stderr
    with only_server(tmp_path / "runs"):
        done = llrag("serve", "--port", "0")
    assert done.returncode == 2 and "another server uses" in done.stderr and "`--runs`" in done.stderr


def test_addresses_are_those_of_a_browser() -> None:
    assert address_of("127.0.0.1", 80) == "http://127.0.0.1:80"
    assert address_of("0.0.0.0", 80) == "http://127.0.0.1:80"
    assert address_of("::1", 80) == "http://[::1]:80"


def test_help_imports_neither_torch_nor_a_server() -> None:
    code = (
        "import sys\nfrom llrag_cli.cli.main import main\nsys.argv = ['llrag', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'fastapi', 'uvicorn', 'starlette'} & {*sys.modules}"
    )
    for arguments in (("--help",), ("serve", "--help")):
        subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=True)


def test_a_run_is_watched_while_another_process_holds_it(tmp_path: Path) -> None:
    """The server of `watch` only reads: it takes no lock, and writes nothing."""
    folder = RunFolder(tmp_path / "by hand")
    make_video(Pipeline.load(MODEL, device="cpu"), PROMPT, folder, seconds=1)
    folder.write_record(folder.read_record().updated(status="running", video_crc32=None))
    with folder.lock(), only_server(tmp_path):
        before = sorted(path.name for path in tmp_path.rglob("*"))
        with program(tmp_path, str(folder.path), "--no-browser", command="watch") as server:
            address, _, fragment = server.address.partition("/#/videos/")
            server.address = address
            video = server.video(fragment)
            assert (video["status"], video["llrag"]["run"]) == ("in_progress", "by hand")
            refused = server.call("POST", "/v1/videos", json={"prompt": PROMPT})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "view_only")
            assert server.call("POST", f"/v1/videos/{fragment}/cancel").status_code == 503
            assert not server.call("GET", "/v1/llrag/info").json()["generates"]
        assert sorted(path.name for path in tmp_path.rglob("*")) == before
