"""Runs the program on hostile files: each attack in a forked process with limits on time and memory."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CPU_SECONDS, MEMORY_MB = 8, 1500  # that an attack may use at most; torch alone takes 600 MB

RUN_EACH = """
import functools, gc, importlib, json, os, pkgutil, resource, signal, sys, traceback
import torch, typer.main
import llrag_cli
from llrag_cli.cli.main import app, main

for module in pkgutil.walk_packages(llrag_cli.__path__, "llrag_cli."):  # once for all attacks
    if module.name != "llrag_cli.__main__":
        importlib.import_module(module.name)
typer.main.get_command = functools.lru_cache(typer.main.get_command)
typer.main.get_command(app)
gc.freeze()  # pages that no child touches are not copied
gc.disable()
torch.set_num_threads(1)
typer.main.get_command = functools.lru_cache(typer.main.get_command)
typer.main.get_command(app)
gc.collect()
gc.freeze()
gc.disable()
outcomes = {}
for name, (folder, arguments) in json.load(sys.stdin).items():
    child = os.fork()
    if child == 0:
        signal.alarm(4 * LIMIT_SECONDS)  # what waits for ever
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_SECONDS, LIMIT_SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(folder)
        for number, stream in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{folder}.{stream}", os.O_WRONLY | os.O_CREAT, 0o600), number)
        os.environ["XDG_CACHE_HOME"] = os.environ["HOME"] = folder + "/cache"
        os.environ["LLRAG_WEIGHTS"] = folder + "/weights"
        sys.argv, code = ["llrag", *arguments], 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status, used = os.wait4(child, 0)
    outcomes[name] = [os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]
json.dump(outcomes, sys.stdout)
"""


@dataclass(frozen=True)
class Attack:
    """A command in a folder of its own that ``make`` fills, and a part of the sentence that it must end with."""

    name: str
    says: str
    command: Sequence[str]
    make: Callable[[Path], object] = lambda folder: None
    writes: str = ""  # pattern of the names in its folder that may change all the same


@dataclass
class Outcome:
    """How an attack ended: a negative code is the signal that killed it."""

    code: int
    cpu_seconds: float
    megabytes: float
    stdout: str
    stderr: str
    changed: list[str] = field(default_factory=list)

    def problems(self, attack: Attack) -> list[str]:
        """Everything that was promised and is not so."""
        errors = re.findall(r"^error: .+", self.stderr, re.MULTILINE)
        found = {
            f"exit code {self.code}": self.code not in (1, 2),
            "a traceback": "Traceback" in self.stdout + self.stderr,
            f"{len(errors)} errors": len(errors) != 1,
            "a bug": "bug in llrag" in self.stderr,
            "another sentence": attack.says not in "".join(errors),
            "a long sentence": any(len(error) > 700 for error in errors),
            "no hint": len(re.findall(r"^\nhint: .+", self.stderr, re.MULTILINE)) != 1,
            f"{self.cpu_seconds:.1f} s": self.cpu_seconds > CPU_SECONDS,
            f"{self.megabytes:.0f} MB": self.megabytes > MEMORY_MB,
            f"changed {self.changed[:3]}": bool(self.changed),
        }
        return [problem for problem, holds in found.items() if holds]


def run_attacks(root: Path, attacks: Sequence[Attack]) -> dict[str, Outcome]:
    """Try each attack in a folder below ``root``, by name."""
    assert len({attack.name for attack in attacks}) == len(attacks)
    commands = {}
    for number, attack in enumerate(attacks):
        folder = root / f"{number:03d}"
        folder.mkdir()
        attack.make(folder)
        commands[attack.name] = (str(folder), [*attack.command])
    before = _fingerprints(root)
    script = RUN_EACH.replace("LIMIT_SECONDS", str(2 * CPU_SECONDS)).replace("LIMIT_BYTES", str(12 * 2**30))
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    after = _fingerprints(root)
    names = {attack.name: attack for attack in attacks}
    outcomes = {}
    for name, (code, cpu_seconds, megabytes) in json.loads(done.stdout).items():
        folder = commands[name][0]
        texts = [Path(f"{folder}.{stream}").read_text(encoding="utf-8", errors="replace") for stream in ("out", "err")]
        outcome = Outcome(code, cpu_seconds, megabytes, *texts)
        own = Path(folder).name
        outcome.changed = [
            path
            for path in sorted(before.keys() | after.keys())
            if path.startswith(f"{own}/") and before.get(path) != after.get(path) and not _allowed(path, names[name])
        ]
        outcomes[name] = outcome
    return outcomes


def _allowed(path: str, attack: Attack) -> bool:
    inside = path.partition("/")[2]
    return inside.startswith("cache") or bool(attack.writes and re.fullmatch(attack.writes, inside))


def _fingerprints(root: Path) -> dict[str, tuple[int, ...]]:
    """What each file and folder below a folder is: any write to a file changes its entry."""
    found = {}
    for folder, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(folder) / name
            about = path.lstat()
            is_file = stat.S_ISREG(about.st_mode)
            times = (about.st_mtime_ns, about.st_ctime_ns, about.st_size) if is_file else ()
            found[path.relative_to(root).as_posix()] = (about.st_ino, about.st_mode, *times)
    return found
