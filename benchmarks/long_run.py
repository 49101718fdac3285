"""Does a block of a long video cost the same to its end? ``python benchmarks/long_run.py --seconds 1800``.

Runs ``llrag generate`` in a process of its own and watches it from outside: which blocks are committed in the run
folder, and how much memory and processor time the process uses. Prints a row for each tenth of the video.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from llrag_cli.presets import load_config
from llrag_cli.runs.folder import RunFolder

TICK = 0.2  # seconds between looks


@dataclass(frozen=True)
class Look:
    """The process at one moment."""

    blocks: int
    wall: float  # seconds since the first look
    processor: float  # seconds of all its threads
    resident: int  # bytes of its own (anonymous) memory


def look(process: int, folder: Path, started: float) -> Look | None:
    """The process now; None once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
        times = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    lines = [line.split() for line in status.splitlines() if line.startswith("RssAnon")]
    if not lines:
        return None
    processor = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    return Look(RunFolder(folder).blocks_committed(), time.perf_counter() - started, processor, 1024 * int(lines[0][1]))


def watch(command: list[str], folder: Path) -> list[Look]:
    """Run a command to its end; one look for each new block that was seen."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    started, looks = time.perf_counter(), [Look(0, 0.0, 0.0, 0)]
    while child.poll() is None:
        latest = look(child.pid, folder, started)
        if latest is not None and latest.blocks > looks[-1].blocks:
            looks.append(latest)
        time.sleep(TICK)
    if child.returncode:
        raise SystemExit(child.returncode)
    return looks[1:]


def draw(seen: list[Look], seconds_a_block: float, path: Path) -> None:
    """Speed and memory over the length of the video."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.0), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    part = max(1, len(seen) // 60)
    marks = seen[::part]
    minutes = [one.blocks * seconds_a_block / 60 for one in marks]
    rates = [(after.blocks - before.blocks) / (after.processor - before.processor) for before, after in pairwise(marks)]
    speed.plot(minutes[1:], rates)
    speed.set(ylabel="blocks per second of processor time", ylim=(0, 1.2 * max(rates)))
    memory.plot(minutes, [one.resident / 1e6 for one in marks])
    memory.set(ylabel="memory of the process, MB", ylim=(0, 1.2e-6 * max(one.resident for one in marks)))
    for axes in (speed, memory):
        axes.set(xlabel="minutes of video")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--archive", default="disk")
    parser.add_argument("--out", type=Path, default=Path("runs/long"))
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    config = load_config("tiny")
    a_block = config.second_of(config.backbone.frames_per_block)
    command = [sys.executable, "-m", "llrag_cli", "generate", "a red circle bounces around on a striped blue wall"]
    command += ["--seconds", str(options.seconds), "--archive", options.archive, "--out", str(options.out)]
    seen = watch(command, options.out)
    frames = config.video_frames(config.latent_frames(options.seconds))
    sys.stdout.write("| minutes of video | wall, ms a block | processor, ms a block | memory of the process |\n")
    sys.stdout.write("|---|---|---|---|\n")
    if len(seen) < 2:
        raise SystemExit("the video is too short: fewer than two blocks were seen")
    size = max(1, len(seen) // 10)
    for first in range(0, min(10 * size, len(seen) - 1), size):
        before, after = seen[first], seen[min(first + size, len(seen) - 1)]
        blocks = after.blocks - before.blocks
        sys.stdout.write(
            f"| {before.blocks * a_block / 60:.0f}-{after.blocks * a_block / 60:.0f} "
            f"| {1e3 * (after.wall - before.wall) / blocks:.0f} "
            f"| {1e3 * (after.processor - before.processor) / blocks:.0f} | {after.resident / 1e6:.0f} MB |\n"
        )
    sys.stdout.write(f"\n{frames} frames, {seen[-1].wall:.0f} s\n")
    if options.plot:
        draw(seen, a_block, options.plot)


if __name__ == "__main__":
    main()
