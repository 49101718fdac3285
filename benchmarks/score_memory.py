"""Is the memory of `llrag bench score` constant? ``python benchmarks/score_memory.py``.

Makes two test videos of 832x480 that differ in length only, scores each in a process of its own, and prints a Markdown
table: peak resident memory of the process, and processor and wall time for each frame.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from llrag_cli.runs.video import ffmpeg

SOURCE = "testsrc2=size=832x480"  # moving bars, discs and digits


def make(path: Path, seconds: int, fps: int) -> None:
    """A test video."""
    source = ["-f", "lavfi", "-i", f"{SOURCE}:rate={fps}", "-t", str(seconds)]
    encode = ["-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p"]
    subprocess.run([ffmpeg(), "-y", "-v", "error", *source, *encode, str(path)], check=True)


def scored(path: Path) -> tuple[int, float, float, int]:
    """Peak resident bytes, processor and wall seconds, and frames of scoring a video in a process of its own."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "llrag_cli", "bench", "score", "--json", str(path)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    result = json.loads(child.stdout.read())
    _, status, usage = os.wait4(child.pid, 0)  # of this child without its ffmpeg
    if status:
        raise SystemExit(f"scoring `{path}` failed")
    kilo = 1 if sys.platform == "darwin" else 1024
    wall = time.perf_counter() - started
    return kilo * usage.ru_maxrss, usage.ru_utime + usage.ru_stime, wall, result["videos"][0]["frames"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[30, 600], help="lengths to compare")
    parser.add_argument("--fps", type=int, default=16, help="frames a second; a clip has twice as many")
    options = parser.parse_args()
    head = ("video", "frames", "peak resident", "processor time a frame", "wall time a frame")
    sys.stdout.write(f"| {' | '.join(head)} |\n|{'---|' * len(head)}\n")
    with tempfile.TemporaryDirectory() as folder:
        for seconds in options.seconds:
            path = Path(folder) / f"{seconds}.mp4"
            make(path, seconds, options.fps)
            peak, processor, wall, frames = scored(path)
            sys.stdout.write(
                f"| {seconds} s, {options.fps} fps | {frames} | {peak / 2**20:.0f} MiB "
                f"| {processor / frames:.3f} s | {wall / frames:.3f} s |\n"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    main()
