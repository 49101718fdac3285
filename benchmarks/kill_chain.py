"""Kill a run again and again, and compare its files: ``python benchmarks/kill_chain.py --kills 50``.

With ``--scene`` the run is a scene that opens with own footage and has a switch, cuts and a finished run as reference.

One run is never interrupted. Another is killed (SIGKILL, sometimes SIGINT) at random moments: while it loads, while it
replays committed blocks, and while it generates new ones. It is resumed with ``llrag generate --resume`` until it is
finished. Latents, memory log and video must be byte-identical. Exits with 1 if they are not.
"""

from __future__ import annotations

import argparse
import collections
import filecmp
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import typer

PROMPT = "a red circle and a white cross pass by on a striped blue wall"
STEPS = "sampler.steps=[1000, 750, 500, 250]"
FILES = ("latents.safetensors", "memory.jsonl", "video.mp4")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "llrag_cli", "generate", *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore it
    )


def commits(run: Path) -> int:
    file = run / "commits.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def kill_somewhere(process: subprocess.Popen[bytes], run: Path, rng: random.Random) -> str:
    """Kill the process at a random moment, or let it finish; returns what it was doing."""
    before, new = commits(run), rng.choice((0, 0, 1, 1, 2, 3))
    limit = time.monotonic() + (rng.uniform(0, 6) if new == 0 else 600)
    while process.poll() is None and time.monotonic() < limit and (new == 0 or commits(run) < before + new):
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.4) if new else 0)
    if process.poll() is not None:
        return "finished" if process.returncode == 0 else "failed"
    done = commits(run)
    process.send_signal(rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT)))
    process.wait()
    return "while generating" if done > before else "while replaying" if before else "before the first block"


def scene(folder: Path, *, seconds: float) -> Path:
    """A scene file, and the run and the clip that it uses."""
    if start(PROMPT, "--seconds", "6", "--set", STEPS, "--out", str(folder / "house")).wait():
        raise SystemExit("the run that is the reference failed")
    (folder / "house/video.mp4").rename(folder / "clip.mp4")
    part = {"seconds": seconds / 4}
    shots = [
        {"name": "arrival", "prompt": PROMPT, "video": "clip.mp4", **part},
        {"prompt": "a green square bounces around in front of a pink wall", **part},
        {"prompt": "a yellow triangle orbits in front of a gray wall", "cut": True, "remember": ["house"], **part},
        {"prompt": "two shapes in front of a wall", "cut": True, "remember": ["arrival", "house"], **part},
    ]
    file = folder / "scene.json"
    file.write_text(json.dumps({"references": {"house": "house"}, "shots": shots}))
    return file


def chain(folder: Path, *, kills: int, seconds: float, seed: int, of_scene: bool = False) -> bool:
    """Make both runs and report what happened; returns whether they are the same."""
    rng = random.Random(seed)
    run, whole = folder / "killed", folder / "whole"
    what = ("--scene", str(scene(folder, seconds=seconds))) if of_scene else (PROMPT, "--seconds", f"{seconds:g}")
    options = (*what, "--set", STEPS)
    if start(*options, "--out", str(whole)).wait():
        raise SystemExit("the run that is not interrupted failed")
    killed: collections.Counter[str] = collections.Counter()
    while killed.total() < kills:
        begun = (run / "run.json").exists()
        process = start("--resume", str(run)) if begun else start(*options, "--out", str(run), "--force")
        state = kill_somewhere(process, run, rng)
        if state == "failed":
            assert process.stderr is not None
            raise SystemExit(f"the run failed: {process.stderr.read().decode()[-2000:]}")
        if state == "finished":
            break
        killed[state] += 1
        typer.echo(f"kill {killed.total()}, {state}: {commits(run)} blocks committed", err=True)
    if start("--resume", str(run)).wait():
        raise SystemExit("the last resume failed")
    same = {name: filecmp.cmp(run / name, whole / name, shallow=False) for name in FILES}
    blocks, record = commits(whole), json.loads((run / "run.json").read_text())
    typer.echo(f"{killed.total()} kills of a run of {blocks} blocks:")
    for state, count in killed.items():
        typer.echo(f"  {count} {state}")
    for name, equal in same.items():
        typer.echo(f"{name}: {'the same' if equal else 'DIFFERENT'}, {(whole / name).stat().st_size} bytes")
    typer.echo(f"status: {record['status']}")
    return all(same.values()) and record["status"] == "complete"


def main() -> None:
    """Parse the command line and run the chain."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0, help="of video; more kills need more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scene", action="store_true", help="a scene instead of one prompt")
    parser.add_argument("--out", type=Path, help="folder for the two runs; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        same = chain(folder, kills=options.kills, seconds=options.seconds, seed=options.seed, of_scene=options.scene)
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
