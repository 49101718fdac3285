"""Does retrieval help the embedded model? ``python benchmarks/memory.py --out DIR``.

Every memory generates the same videos (prompt and seed) with the same context size. Prompts describe panoramas and
leave things out, so that only the video itself determines what comes back. Frames are judged by
``world/consistency.py`` against the first part of their own video. Finished videos are recorded in DIR/videos.jsonl;
the same command continues an interrupted run, and writes DIR/videos.csv, DIR/table.md, DIR/memory.json and
DIR/memory.png at its end.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from llrag_cli import Pipeline, RunConfig, load_config
from llrag_cli.evaluation.statistics import interval
from llrag_cli.world.consistency import consistency, looks
from llrag_cli.world.sprites import caption, random_scene

MEMORIES: dict[str, tuple[str, ...]] = {  # the strategy, and settings
    "native window": ("none",),
    "nearest, encoder": ("nearest", "memory.keys=encoder"),
    "nearest, average pooling": ("nearest", "memory.keys=average"),
    "successor, encoder": ("successor", "memory.keys=encoder"),
    "successor, average pooling": ("successor", "memory.keys=average"),
    "random": ("random",),
    "uniform": ("uniform",),
    "deep sink": ("deep-sink",),
    "diverse, encoder": ("diverse", "memory.keys=encoder"),
    "gate, encoder": ("gate", "memory.keys=encoder"),
    "prompt, encoder": ("prompt", "memory.keys=encoder"),
}
MEASURES = {
    "color": "objects of a colour seen before",
    "identity": "objects of a colour and shape seen before",
    "returns": "objects that come back beside the right neighbour",
    "background": "frames with the wall's colour",
    "tint": "distance of the wall's colour (less is better)",
    "visible": "frames that show an object",
}
LATENT_FPS = 2  # of the embedded model: 8 frames a second, 4 to a latent frame


def prompts_of(count: int, *, keep: float) -> list[str]:
    """Captions of panoramas, each attribute named with probability ``keep``."""
    rng, found = random.Random("memory"), list[str]()
    while len(found) < count:
        scene = random_scene(rng)
        if scene.motion == "pan":
            words = caption(scene, rng, keep=keep)
            found.append(words if "pass" in words or "slide" in words else f"{words}, passing by")
    return found


def config_of(memory: str, backbone: str, steps: int | None) -> RunConfig:
    """The preset under a memory; ``steps`` None: with its own sampler."""
    strategy, *settings = MEMORIES[memory]
    if steps is not None:
        settings.append(f"sampler.steps={[round(1000 - 1000 * step / steps) for step in range(steps)]}")
    return load_config(backbone, memory=strategy, settings=settings)


def judge_batch(pipeline: Pipeline, prompts: Sequence[str], *, seconds: float, seed: int, first: int) -> list[Any]:
    """Generate a batch of videos and read what each shows at the end of every latent frame."""
    frames: list[torch.Tensor] = []
    ratio = pipeline.decoder.temporal_ratio
    samples = range(first, first + len(prompts))
    for block in pipeline.start(prompts, seconds=seconds, seed=seed, samples=samples):
        frames.append(block.frames[:, (block.frames.shape[1] - 1) % ratio :: ratio])
    videos = (torch.cat(frames, dim=1) / 2 + 0.5).clamp(0, 1)  # [B, F, 3, H, W]
    return [looks(video) for video in videos]


def stretches(seconds: float, reference: float) -> list[range]:
    """The time after the reference, in equal parts of about 10 s, in latent frames."""
    parts = max(1, round((seconds - reference) / 10))
    marks = [round(LATENT_FPS * (reference + part * (seconds - reference) / parts)) for part in range(parts + 1)]
    return [range(start, stop) for start, stop in itertools.pairwise(marks)]


def collect_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    """A line for each video and stretch."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["memory", "prompt", "seed", "from_second", "to_second", *MEASURES])
        for row in rows:
            for (start, stop), found in zip(row["spans"], row["stretches"], strict=True):
                values = ("" if found[name] is None else f"{found[name]:.4f}" for name in MEASURES)
                writer.writerow([row["memory"], row["prompt"], row["seed"], f"{start:g}", f"{stop:g}", *values])


def report(rows: list[dict[str, Any]], out: Path, title: str) -> str:
    """Tables and a picture from the rows of all videos."""
    memories = [memory for memory in MEMORIES if any(row["memory"] == memory for row in rows)]
    at = {(row["memory"], row["prompt"], row["seed"]): row for row in rows}
    addresses = sorted({(row["prompt"], row["seed"]) for row in rows})
    addresses = [address for address in addresses if all((memory, *address) in at for memory in memories)]
    clusters = [prompt for prompt, _ in addresses]
    parts = len(rows[0]["stretches"])

    def values(memory: str, measure: str, part: int | None) -> np.ndarray:
        found = []
        for address in addresses:
            each = at[(memory, *address)]["stretches"]
            chosen = [entry[measure] for entry in (each if part is None else each[part : part + 1])]
            known = [value for value in chosen if value is not None]
            found.append(sum(known) / len(known) if known else np.nan)
        return np.array(found)

    lines = [f"{title}; {len(addresses)} videos of each memory.", ""]
    numbers: dict[str, Any] = {"videos": len(addresses), "means": {}, "against native": {}, "against random": {}}
    lines += ["| memory | " + " | ".join(MEASURES) + " |", "|---|" + "---|" * len(MEASURES)]
    for memory in memories:
        found = {measure: interval(values(memory, measure, None), clusters=clusters) for measure in MEASURES}
        numbers["means"][memory] = found
        lines.append(
            f"| {memory} | "
            + " | ".join(f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in found.values())
            + " |"
        )
    for other in ("native window", "random"):
        if other not in memories:
            continue
        short = other.split()[0]
        lines += ["", f"Paired differences against {other}:", ""]
        lines += ["| memory | " + " | ".join(MEASURES) + " |", "|---|" + "---|" * len(MEASURES)]
        for memory in memories:
            if memory == other:
                continue
            found = {
                measure: interval(values(memory, measure, None) - values(other, measure, None), clusters=clusters)
                for measure in MEASURES
            }
            numbers[f"against {short}"][memory] = found
            cells = [f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" for mean, low, high in found.values()]
            lines.append(f"| {memory} | " + " | ".join(cells) + " |")
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    shown = ("color", "identity", "returns", "tint")
    for axes, measure in zip(figure.subplots(1, len(shown)), shown, strict=True):
        for memory in memories:
            bands = [interval(values(memory, measure, part), clusters=clusters) for part in range(parts)]
            times = [sum(rows[0]["spans"][part]) / 2 for part in range(parts)]
            (line,) = axes.plot(times, [mean for mean, _, _ in bands], marker="o", ms=3, label=memory)
            if memory in ("native window", "successor, encoder"):
                axes.fill_between(
                    times,
                    [low for _, low, _ in bands],
                    [high for _, _, high in bands],
                    color=line.get_color(),
                    alpha=0.15,
                )
        axes.set(title=MEASURES[measure], xlabel="seconds")
        axes.title.set_fontsize(9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=7)
    figure.savefig(out / "memory.png", dpi=110)
    (out / "memory.json").write_text(json.dumps(numbers, indent=1) + "\n")
    text = "\n".join(lines) + "\n"
    (out / "table.md").write_text(text)
    return text


def main(
    out: Annotated[Path, typer.Option(help="Folder for the results")],
    prompts: Annotated[int, typer.Option(help="Prompts")] = 32,
    skip: Annotated[int, typer.Option(help="Prompts of the pool to leave out at its start")] = 0,
    seeds: Annotated[int, typer.Option(help="Seeds of each prompt")] = 3,
    seconds: Annotated[float, typer.Option(help="Length of each video")] = 60.0,
    reference: Annotated[float, typer.Option(help="Seconds at the start that are the reference")] = 20.0,
    keep: Annotated[float, typer.Option(help="Probability that a prompt names an attribute")] = 0.4,
    backbone: Annotated[str, typer.Option(help="tiny or tiny-distilled")] = "tiny",
    steps: Annotated[int | None, typer.Option(help="Denoising steps; default: the preset's")] = None,
    batch: Annotated[int, typer.Option(help="Videos generated together")] = 32,
    memories: Annotated[str, typer.Option(help="Separated by semicolons, of: " + "; ".join(MEMORIES))] = ";".join(
        MEMORIES
    ),
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """Generate the missing videos, judge them, and write the report."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    pool = prompts_of(skip + prompts, keep=keep)
    (out / "prompts.txt").write_text("\n".join(pool[skip:]) + "\n")
    record = out / "videos.jsonl"
    common = {"seconds": seconds, "reference": reference, "keep": keep, "backbone": backbone, "steps": steps}
    for memory in memories.split(";"):
        pipeline = Pipeline.load(config_of(memory, backbone, steps), device="cpu")
        for seed in range(seeds):
            done = {
                (row["memory"], row["prompt"], row["seed"]) for row in collect_rows(record) if row["common"] == common
            }
            for first in range(skip, len(pool), batch):
                numbers = range(first, min(len(pool), first + batch))
                if all((memory, number, seed) in done for number in numbers):
                    continue
                started = time.perf_counter()
                read = judge_batch(
                    pipeline, [pool[number] for number in numbers], seconds=seconds, seed=seed, first=first
                )
                spans = stretches(seconds, reference)
                with record.open("a") as file:
                    for number, seen in zip(numbers, read, strict=True):
                        judged = [
                            asdict(consistency(seen, reference=round(LATENT_FPS * reference), stretch=span))
                            for span in spans
                        ]
                        row = {"memory": memory, "prompt": number, "seed": seed, "common": common, "stretches": judged}
                        row["spans"] = [[span.start / LATENT_FPS, span.stop / LATENT_FPS] for span in spans]
                        file.write(json.dumps(row) + "\n")
                typer.echo(
                    f"{memory}, seed {seed}: {len(numbers)} videos in {time.perf_counter() - started:.0f} s", err=True
                )
    rows = [row for row in collect_rows(record) if row["common"] == common]
    write_csv(rows, out / "videos.csv")
    title = f"{backbone}, {prompts} prompts x {seeds} seeds, {seconds:g} s, compared with the first {reference:g} s"
    typer.echo(report(rows, out, title))


if __name__ == "__main__":
    typer.run(main)
