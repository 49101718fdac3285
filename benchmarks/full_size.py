"""Do models of the released size go through every command? ``python benchmarks/full_size.py --work DIR``.

A hub on this machine offers random weights in the official formats and sizes. Commands that a user would type download
them, generate, resume, extend and decode small videos, each in a process of its own, whose time and memory are
measured from outside and compared with the plan that it prints. It takes some 45 GB of disk in ``DIR``, 14 GB of free
memory, and about 40 minutes of two CPU cores. ``--steps`` repeats some of it; ``--picture`` adds a block of 832x480.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from hub import Hub
from released import LONGLIVE_RAG, WAN, Sizes, released_base, released_checkpoint

TICK = 0.05  # seconds between looks at a process
UNITS = {"bytes": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
PROMPT = "a silver robot waters orchids in a glasshouse at dusk"
SMALL = ("--size", "128x64", "--set", "memory.keys=average", "--set", "sampler.steps=[1000]")
SECONDS, LONGER = 2, 3.5  # of video: 3 blocks, and 5 more, of which the last two retrieve


@dataclass(frozen=True)
class Row:
    """What one command took; memory in bytes."""

    step: str
    command: str
    seconds: float
    processor_seconds: float
    planned: int | None  # by the command itself
    own: int  # most anonymous memory of the process
    resident: int  # most resident memory, with files that are mapped
    result: str


class Machine:
    """A home for the commands: their hub, caches and weights."""

    def __init__(self, work: Path, hub: Hub, sizes: Sizes) -> None:
        self.work, self.hub, self.sizes = work, hub, sizes
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(work / "hub"),
            "XDG_CACHE_HOME": str(work / "cache"),
            "LLRAG_WEIGHTS": str(work / "weights"),
        }

    def run(self, step: str, *arguments: str, until: Callable[[], bool] = lambda: False) -> Row:
        """Run a command of llrag to its end, or kill it once a condition holds."""
        log = self.work / "logs" / f"{step.replace(' ', '-')}.txt"
        log.parent.mkdir(exist_ok=True)
        own, started, killed = 0, time.perf_counter(), False
        with log.open("wb") as output:
            command = [sys.executable, "-m", "llrag_cli", *arguments]
            child = subprocess.Popen(command, cwd=self.work, env=self.environment, stdout=output, stderr=output)
            while True:
                ended, status, usage = os.wait4(child.pid, os.WNOHANG)
                if ended:
                    break
                own = max(own, anonymous(child.pid))
                if not killed and until():
                    os.kill(child.pid, signal.SIGKILL)
                    killed = True
                time.sleep(TICK)
        child.returncode = os.waitstatus_to_exitcode(status)
        text = log.read_text(encoding="utf-8")
        if child.returncode != (-signal.SIGKILL if killed else 0):
            raise SystemExit(f"{step} failed with {child.returncode}:\n{text}")
        return Row(
            step,
            " ".join(["llrag", *arguments]),
            round(time.perf_counter() - started, 1),
            round(usage.ru_utime + usage.ru_stime, 1),
            planned(text),
            own,
            1024 * usage.ru_maxrss,
            "",
        )


def anonymous(process: int) -> int:
    """Bytes of anonymous memory of a process; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def planned(text: str) -> int | None:
    """The bytes on the CPU in the plan that a command prints, if it prints one."""
    found = re.search(r"^memory: ([\d.]+) (\w+)", text, re.MULTILINE)
    return int(float(found[1]) * UNITS[found[2]]) if found else None


def download(machine: Machine, step: str, item: str, checkpoints: tuple[str, ...], *options: str) -> Row:
    """Offer the base and some checkpoints on the hub, and download an item that needs them."""
    folder = machine.work / "source"
    if WAN not in machine.hub.repos:
        machine.hub.repos = {WAN: released_base(folder, machine.sizes)}
    stored = {f"checkpoints/{name}": released_checkpoint(folder, name, machine.sizes) for name in checkpoints}
    machine.hub.repos = {**machine.hub.repos, LONGLIVE_RAG: stored}
    row = machine.run(step, "download", "weights", item, "--prune", *options)
    for name in checkpoints:
        (folder / name).unlink()
    weights = machine.work / "weights"
    size = sum(file.stat().st_size for file in weights.rglob("*") if file.is_file())
    return replace(row, result=f"{size / 1e9:.1f} GB of weights")


def contents(run: Path) -> list[bytes]:
    """The files of a run that are the same for the same video."""
    return [(run / name).read_bytes() for name in ("video.mp4", "latents.safetensors", "memory.jsonl")]


def same(row: Row, one: Path, other: Path) -> Row:
    """A row that says that two runs have the same files; an error if they have not."""
    if contents(one) != contents(other):
        raise SystemExit(f"{row.step}: `{one}` and `{other}` differ")
    return replace(row, result="the same bytes")


def generate(machine: Machine, step: str, out: str, *options: str, backbone: str = "self-forcing") -> Row:
    """Generate a small video of two seconds."""
    arguments = ("--backbone", backbone, *SMALL, "--seconds", str(SECONDS), "--out", out, *options)
    return machine.run(step, "generate", PROMPT, *arguments)


def kill_and_resume(machine: Machine, step: str) -> Row:
    """Kill a run in its second block, and resume it."""
    run = machine.work / "runs/killed"
    arguments = ("--backbone", "self-forcing", *SMALL, "--seconds", str(SECONDS), "--out", "runs/killed")
    commits = run / "commits.jsonl"
    machine.run(
        "kill", "generate", PROMPT, *arguments, until=lambda: commits.exists() and b"\n" in commits.read_bytes()
    )
    row = machine.run(step, "generate", "--resume", "runs/killed")
    return same(row, run, machine.work / "runs/first")


def decode(machine: Machine, step: str) -> Row:
    """Lose a video, and make it again from its latents."""
    run = machine.work / "runs/extended"
    before = contents(run)
    (run / "video.mp4").unlink()
    row = machine.run(step, "decode", "runs/extended")
    if contents(run) != before:
        raise SystemExit(f"{step}: the video differs")
    return replace(row, result="the same bytes")


def extend(machine: Machine, step: str) -> Row:
    """Make a copy of the first video longer."""
    shutil.copytree(machine.work / "runs/first", machine.work / "runs/extended", dirs_exist_ok=True)
    row = machine.run(step, "extend", "runs/extended", "--seconds", str(LONGER))
    retrieved = (machine.work / "runs/extended/memory.jsonl").read_text().splitlines()[-1]
    return replace(row, result=retrieved)


def offload(machine: Machine, step: str) -> Row:
    """The first video again, with weights that come layer by layer."""
    row = generate(machine, step, "runs/offloaded", "--offload")
    return same(row, machine.work / "runs/offloaded", machine.work / "runs/first")


def picture(machine: Machine, step: str) -> Row:
    """One block at the released size of the picture, found by the released encoder."""
    options = ("--backbone", "self-forcing", "--set", "sampler.steps=[1000]", "--dtype", "bfloat16")
    return machine.run(step, "generate", PROMPT, *options, "--seconds", "0.5", "--out", "runs/picture")


STEPS: Mapping[str, Callable[[Machine, str], Row]] = {
    "download, all of `self-forcing`": lambda machine, step: download(
        machine, step, "self-forcing", ("self_forcing.pt", "ae_latent_mem.pt")
    ),
    "download, `longlive` with its LoRA": lambda machine, step: download(
        machine, step, "longlive", ("longlive_base.pt", "longlive_lora.pt"), "--only"
    ),
    "generate, prompt encoded": lambda machine, step: generate(machine, step, "runs/first"),
    "generate, prompt known, bfloat16": lambda machine, step: generate(
        machine, step, "runs/half", "--dtype", "bfloat16"
    ),
    "resume after `kill -9`": kill_and_resume,
    "extend": extend,
    "decode": decode,
    "generate, `--offload`": offload,
    "generate, `longlive`, LoRA merged": lambda machine, step: generate(
        machine, step, "runs/longlive", backbone="longlive"
    ),
    "generate, a block of 832x480, bfloat16": picture,
}


def read_rows(path: Path) -> dict[str, Row]:
    """The rows of an earlier call."""
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {
            line["step"]: Row(
                line["step"],
                line["command"],
                float(line["seconds"]),
                float(line["processor_seconds"]),
                int(line["planned"]) if line["planned"] else None,
                int(line["own"]),
                int(line["resident"]),
                line["result"],
            )
            for line in csv.DictReader(file)
        }


def write_rows(path: Path, rows: Mapping[str, Row]) -> None:
    """Write rows in the order of the steps."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [each.name for each in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(rows[step]) for step in STEPS if step in rows)


def main(sizes: Sizes | None = None) -> None:
    """Run the steps; a row is written as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("full-size"), help="folder for all that is made")
    parser.add_argument("--steps", default="", help="words that are in the names of the steps to run, with commas")
    parser.add_argument("--picture", action="store_true", help="also a block of 832x480, which takes long")
    parser.add_argument("--csv", type=Path, help="where the table goes; default: table.csv in the folder")
    options = parser.parse_args()
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    table, words = options.csv or work / "table.csv", [word for word in options.steps.split(",") if word]
    rows = read_rows(table)
    sizes = sizes or Sizes()
    with Hub({}) as hub:
        machine = Machine(work, hub, sizes)
        for step, run in STEPS.items():
            wanted = any(word in step for word in words) if words else run is not picture or options.picture
            if wanted:
                row = rows[step] = run(machine, step)
                write_rows(table, rows)
                plan = "none" if row.planned is None else f"{row.planned / 1e9:.2f} GB"
                sys.stdout.write(
                    f"{step}: {row.seconds:.0f} s, {row.processor_seconds:.0f} s of processor time, planned {plan}, "
                    f"own memory {row.own / 1e9:.2f} GB, resident {row.resident / 1e9:.2f} GB; {row.result}\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
