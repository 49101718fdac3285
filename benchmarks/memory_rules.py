"""The second study of memory rules, as docs/memory-rules-study-2.md plans it, by `llrag bench returning`.

    python benchmarks/memory_rules.py --out study --encoder encoder-32.safetensors                        # part 1
    python benchmarks/memory_rules.py --out study --encoder encoder-32.safetensors \
        --search tiny-self-forcing --confirm tiny-self-forcing --confirm tiny-causal-forcing --confirm tiny-longlive

Searches, pairs the best rules, and confirms the choice: a folder for each step and model. The same command continues an
interrupted study.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from llrag_cli.evaluation.grid import Case
from llrag_cli.evaluation.metrics.backends import offline
from llrag_cli.evaluation.metrics.score import score
from llrag_cli.evaluation.results import as_csv
from llrag_cli.evaluation.run import Scored
from llrag_cli.runs.video import open_video

USE = {
    "commit-recent": "memory.commit=recent",
    "commit-self": "memory.commit=self",
    "times-ordered": "memory.times=ordered",
    "times-interpolated": "memory.times=interpolated",
    "last-step": "memory.read_steps=1",
    "last-layers": "memory.read_layers=3",
    "aligned": "memory.alignment=0.35",
}
STRATEGY = {
    f"v-{name}": f"memory.strategy={name}"
    for name in ("successor", "prompt", "diverse", "spaced", "gate", "uniform", "deep-sink")
}
KEYS = {"keys-average": "memory.keys=average", "keys-attention": "memory.keys=attention"}
BOTH = {
    "attention-diverse": "memory.strategy=diverse memory.keys=attention",
    "attention-spaced": "memory.strategy=spaced memory.keys=attention",
    "v-mean-sink": "memory.strategy=mean-sink",
}
MAIN = ("native", "nearest", "random")


def main() -> None:
    """Run what is missing of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True, help="file of the variant `encoder-small`")
    parser.add_argument("--search", default="tiny-distilled", help="preset that rules are searched on")
    parser.add_argument("--confirm", action="append", help="preset that the choice is confirmed on; repeatable")
    parser.add_argument("--scenes", type=int, nargs=2, default=(8, 12), help="of the search and of the confirmation")
    parser.add_argument("--seconds", type=float, default=60.0)
    asked = parser.parse_args()
    keys = {**KEYS, "encoder-small": f"memory.encoder={json.dumps(str(asked.encoder.resolve()))}"}
    rules = {**USE, **STRATEGY, **keys, **BOTH}
    searching, confirming = asked.scenes

    def run(step: str, backbone: str, pool: str, scenes: int, variants: Mapping[str, str], videos: int = 0) -> Path:
        folder = Path(asked.out) / f"{step}-{backbone}"
        bench(folder, backbone, pool, scenes, asked.seconds, variants, videos)
        return folder

    found = gains(run("search", asked.search, "search-2", searching, rules))
    groups = [best for group in (USE, STRATEGY, keys) if (best := best_of(found, group)) is not None]
    pairs = {f"{a}_{b}": f"{rules[a]} {rules[b]}" for a, b in combinations(groups, 2)}
    chosen = {name: rules[name] for name in [best_of(found, rules)] if name is not None}
    if pairs:
        paired = gains(run("pairs", asked.search, "search-2", searching, pairs))
        best = max(paired, key=lambda name: paired[name])
        chosen[best] = pairs[best]
    say(f"chosen: {chosen or 'nothing'}")
    for backbone in asked.confirm or [asked.search]:
        score_videos(run("confirm", backbone, "confirm-2", confirming, chosen, videos=4), backbone, asked.seconds)


def bench(
    folder: Path, backbone: str, pool: str, scenes: int, seconds: float, variants: Mapping[str, str], videos: int
) -> None:
    """`llrag bench returning`, as a person would call it."""
    command = ["bench", "returning", "--backbone", backbone, "--pool", pool, "--scenes", str(scenes)]
    command += ["--seconds", f"{seconds:g}", "--videos", str(videos), "--out", str(folder)]
    command += [word for name in MAIN for word in ("--condition", name)]
    command += [word for name, settings in variants.items() for word in ("--variant", f"{name}={settings}")]
    say(" ".join(["llrag", *map(shlex.quote, command)]))
    subprocess.run([sys.executable, "-m", "llrag_cli", *command], check=True)


def score_videos(folder: Path, backbone: str, seconds: float) -> None:
    """Score the videos that were kept: ``scores.csv``, which `llrag bench compare` reads; the prompt is the scene."""
    file, scored, models = folder / "scores.csv", [], offline()
    if file.exists():
        return
    conditions = json.loads((folder / "settings.json").read_text())["conditions"]
    for path in [video for name in conditions for video in sorted(folder.glob(f"videos/{name}/*.mp4"))]:
        scene, _, seed = path.stem.partition("-seed")
        case = Case(backbone, path.parent.name, int(scene), f"scene {int(scene)}", int(seed))
        video = open_video(path)
        found = score(video.frames, fps=video.fps, backend=models)
        scored.append(Scored(case, seconds, found, models.name))
        say(str(path))
    file.write_text(as_csv(scored), encoding="utf-8")


def say(text: str) -> None:
    """Write a line now, not when the study is over."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def gains(folder: Path) -> dict[str, float]:
    """By how much each variant exceeds `nearest` in identity, mean over scenes."""
    content = json.loads((folder / "results.json").read_text())
    named: Sequence[Mapping[str, object]] = content["differences"]
    return {
        str(gap["condition"]): float(gap["identity"]["mean"])  # type: ignore[index]
        for gap in named
        if gap["condition"] in content["settings"]["variants"] and gap["minus"] == "nearest" and gap["identity"]
    }


def best_of(found: Mapping[str, float], names: Mapping[str, str]) -> str | None:
    """The best of some variants, if it is above zero."""
    better = {name: found[name] for name in names if found.get(name, 0.0) > 0}
    return max(better, key=lambda name: better[name], default=None)


if __name__ == "__main__":
    main()
