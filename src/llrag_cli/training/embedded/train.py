"""Train the embedded model from scratch: ``python -m llrag_cli.training.embedded.train STAGE --out DIR``.

The stages are vae, clips, scenes and backbone, in this order; each reads the files that earlier ones wrote into the
folder. The package contains ``vae.safetensors`` and ``backbone.safetensors``. ``prompts`` writes a prompt pool for
``llrag collect`` and ``llrag train-encoder``, which train the encoder in the package.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

if TYPE_CHECKING:
    from llrag_cli.training.embedded.lessons import Lessons

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode=None)

Out = Annotated[Path, typer.Option(help="Folder of this training")]
Steps = Annotated[int, typer.Option(min=1, help="Optimiser steps")]
Seed = Annotated[int, typer.Option(help="Seed of data and weights")]


@app.callback()
def setup(threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 2) -> None:
    """Shared by all stages."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)


@app.command()
def vae(
    out: Out,
    steps: Steps = 580,
    seed: Seed = 0,
    clips: Annotated[int, typer.Option(min=512, help="Clips of three latent frames")] = 5000,
    encoder: Annotated[
        Path | None, typer.Option(help="Keep the encoder of this VAE, and so its latents; train the decoder alone")
    ] = None,
) -> None:
    """Train the VAE."""
    from llrag_cli.training.embedded.train_vae import train_vae

    out.mkdir(parents=True, exist_ok=True)
    train_vae(out / "vae.safetensors", steps=steps, seed=seed, clips=clips, encoder=encoder)


@app.command()
def clips(
    out: Out,
    count: Annotated[int, typer.Option(min=8, help="Clips of 36 latent frames")] = 2000,
    openings: Annotated[int, typer.Option(min=8, help="Clips of one block")] = 30000,
    crowded: Annotated[int, typer.Option(min=0, help="More of them, of two or three objects in one view")] = 24000,
    seed: Seed = 0,
) -> None:
    """Render and encode the training clips of the backbone."""
    from llrag_cli.models.embedded.model import load_vae
    from llrag_cli.training.embedded.dataset import crowded_scene, make_clips, save_clips
    from llrag_cli.world.sprites import random_scene

    vae = load_vae(out / "vae.safetensors")
    if not (out / "clips.safetensors").exists():
        save_clips(make_clips(vae, random_scene, count=count, frames=36, seed=seed), out / "clips.safetensors")
    if not (out / "openings.safetensors").exists():
        save_clips(make_clips(vae, random_scene, count=openings, frames=3, seed=seed + 1), out / "openings.safetensors")
    save_clips(make_clips(vae, crowded_scene, count=crowded, frames=3, seed=seed + 2), out / "crowded.safetensors")


@app.command()
def scenes(
    out: Out,
    count: Annotated[int, typer.Option(min=8, help="Clips of each kind")] = 1000,
    kind: Annotated[str | None, typer.Option(help="One kind alone, for example `switch-3`")] = None,
    seed: Seed = 0,
) -> None:
    """Render and encode clips with a switch of the prompt or with cuts."""
    from llrag_cli.models.embedded.model import load_vae
    from llrag_cli.training.embedded.scene_clips import SCENE_KINDS, make_scene_clips, save_scene_clips

    vae = load_vae(out / "vae.safetensors")
    for name, (form, shots) in SCENE_KINDS.items():
        if kind is None or kind == name:
            clips = make_scene_clips(vae, form, shots=shots, count=count, seed=seed)
            save_scene_clips(clips, out / f"scenes-{name}.safetensors")


def _lessons(out: Path, *, scenes: tuple[str, ...], batch: int, seed: int, native: bool) -> Lessons:
    """Batches of the clips in a folder, with those of scenes, which take turns as named."""
    from llrag_cli.training.embedded.dataset import joined, load_clips
    from llrag_cli.training.embedded.lessons import Lessons
    from llrag_cli.training.embedded.scene_clips import load_scene_clips

    openings = joined([load_clips(out / f"{name}.safetensors") for name in ("openings", "crowded")])
    by_name = {name: load_scene_clips(out / f"scenes-{name}.safetensors") for name in sorted(set(scenes))}
    return Lessons(
        load_clips(out / "clips.safetensors"),
        openings,
        [by_name[name] for name in scenes],
        batch=batch,
        generator=torch.Generator().manual_seed(seed),
        native=native,
    )


SWITCHES = ("switch-3", "switch-6")
SWITCHES_AND_CUTS = ("switch-3", "cut", "switch-6", "cut")

Native = Annotated[bool, typer.Option("--native", help="Train with the sliding window alone: nothing is retrieved")]
Guidance = Annotated[float, typer.Option(min=1.0, help="Scale of the teacher's classifier-free guidance")]


@app.command()
def backbone(
    out: Out,
    steps: Steps = 3500,
    batch: Annotated[int, typer.Option(min=1, help="Clips per step")] = 4,
    seed: Seed = 0,
    resume: Annotated[Path | None, typer.Option(help="Start from these weights")] = None,
    scenes: Annotated[
        bool, typer.Option("--scenes/--no-scenes", help="Train on switches and cuts in every other step")
    ] = False,
    native: Native = False,
    teacher: Annotated[Path | None, typer.Option(help="Learn the predictions of these weights, not the clips")] = None,
    guidance: Guidance = 2.0,
    match_states: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Also learn the teacher's tokens after each layer, without guidance: `apart`, each layer from the "
            "teacher's tokens before it, or `together`",
        ),
    ] = None,
    keep_text: Annotated[bool, typer.Option("--keep-text", help="Take the teacher's text encoder as it is")] = False,
    minutes: Annotated[float | None, typer.Option(help="End after so long, if the steps are not done")] = None,
    gentle: Annotated[bool, typer.Option("--gentle", help="A smaller learning rate that falls from the start")] = False,
) -> None:
    """Train transformer and text encoder by teacher forcing."""
    from llrag_cli.training.embedded.network import Network, Teacher
    from llrag_cli.training.embedded.train_backbone import train_backbone

    if match_states not in (None, "apart", "together"):
        raise typer.BadParameter("tokens are learned `apart` or `together`")
    if match_states and (teacher is None or guidance != 1):
        raise typer.BadParameter("states are those of a teacher without guidance")
    if keep_text and teacher is None:
        raise typer.BadParameter("the text encoder is that of a teacher, and none is named")
    named = () if not scenes else SWITCHES if native else SWITCHES_AND_CUTS
    train_backbone(
        _lessons(out, scenes=named, batch=batch, seed=seed, native=native),
        out / ("native.safetensors" if native else "backbone.safetensors"),
        steps=steps,
        seed=seed,
        teacher=None if teacher is None else Teacher(Network.of(teacher), guidance),
        match_states=match_states,
        keep_text=keep_text,
        resume=resume,
        minutes=minutes,
        matrix_lr=6e-3 if gentle else 1e-2,
        other_lr=1.5e-3 if gentle else 2e-3,
        flat=0.1 if gentle else 0.4,
    )


@app.command()
def distil(
    out: Out,
    teacher: Annotated[Path, typer.Option(help="Weights to distil")],
    name: Annotated[str, typer.Option(help="Of the file that is written, without `.safetensors`")] = "student",
    student: Annotated[Path | None, typer.Option(help="Start from these weights; default: the teacher's")] = None,
    rollouts: Annotated[
        str | None, typer.Option(help="Learn on videos of its own, `short` or `long` with switches; default: on clips")
    ] = None,
    guidance: Guidance = 2.0,
    steps: Steps = 600,
    batch: Annotated[int, typer.Option(min=1, help="Clips per step")] = 2,
    scenes: Annotated[bool, typer.Option("--scenes/--no-scenes", help="Also on switches and cuts")] = True,
    native: Native = False,
    minutes: Annotated[float | None, typer.Option(help="End after so long, if the steps are not done")] = None,
    seed: Seed = 0,
) -> None:
    """Distil a trained backbone to four steps by distribution matching."""
    from llrag_cli.training.embedded.distil import SCHEDULE
    from llrag_cli.training.embedded.distil import distil as train
    from llrag_cli.training.embedded.network import Network
    from llrag_cli.training.embedded.rollouts import OwnRollouts

    learner = Network.of(student or teacher)
    named = () if not scenes else SWITCHES if native else SWITCHES_AND_CUTS
    lessons = _lessons(out, scenes=named, batch=batch, seed=seed, native=native)
    draw = lessons.draw
    if rollouts is not None:
        if rollouts not in ("short", "long"):
            raise typer.BadParameter("rollouts are `short` or `long`")
        long = rollouts == "long"
        own = OwnRollouts(
            learner,
            lessons.openings.scenes,
            SCHEDULE,
            videos=2 * batch,
            blocks=20 if long else 7,
            learned=6 if long else 7,
            switches=long,
        )
        draw = own.draw
    train(
        learner,
        draw,
        out / f"{name}.safetensors",
        teacher_weights=teacher,
        guidance=guidance,
        steps=steps,
        minutes=minutes,
        seed=seed,
    )


@app.command()
def pack(
    weights: Annotated[Path, typer.Argument(help="Weights of a backbone")],
    packed: Annotated[Path, typer.Argument(help="File to write")],
) -> None:
    """Store weights of a backbone at half the size: matrices as bytes with a scale for each row."""
    from safetensors.torch import load_file, save_file

    from llrag_cli.models.embedded.storage import packed as pack_state
    from llrag_cli.models.embedded.storage import unpacked

    save_file(pack_state(unpacked(load_file(weights))), packed)


@app.command()
def prompts(out: Out, count: Annotated[int, typer.Option(min=2, help="Prompts")] = 192, seed: Seed = 0) -> None:
    """Write a pool of captions, some of them incomplete, to collect latents for the retrieval encoder."""
    from llrag_cli.world.sprites import caption, random_scene

    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    lines = [caption(random_scene(rng), rng, keep=rng.choice((0.5, 1.0))) for _ in range(count)]
    (out / "prompts.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app()
