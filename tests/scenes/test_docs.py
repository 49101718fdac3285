"""docs/scenes.md says what is so, and the room stays light."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file

from llrag_cli.presets import load_config
from llrag_cli.scenes.reading import read_scene
from llrag_cli.scenes.schema import Reference, Scene, Shot
from llrag_cli.scenes.timeline import plan_timeline

DOCS = (Path(__file__).parents[2] / "docs/scenes.md").read_text()


def example(folder: Path) -> Scene:
    (folder / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "pictures/mara.png")
    house = folder / "runs/greenhouse"
    house.mkdir(parents=True)
    (house / "run.json").touch()
    save_file({"latents": torch.zeros(4, 16, 60, 104)}, house / "latents.safetensors")
    (folder / "scene.yaml").write_text(DOCS.split("```yaml\n")[1].split("```")[0])
    return read_scene(folder / "scene.yaml")


def test_the_timeline_of_the_example(tmp_path: Path) -> None:
    timeline = plan_timeline(example(tmp_path), load_config("longlive", memory="nearest"))
    for shot in timeline.shots:
        extent = timeline.extent(shot)
        ranges = [f"{part[0]}-{part[-1]}" for part in (extent.blocks, extent.latent_frames, extent.video_frames)]
        times = f"{round(extent.start_seconds, 2):g} - {round(extent.end_seconds, 2):g}"
        assert f"| `{shot.name}` | {' | '.join(ranges)} | {times} |" in DOCS


def test_every_key_is_in_the_reference() -> None:
    for title, model in (("a scene", Scene), ("a shot", Shot), ("a reference", Reference)):
        section = DOCS.split(f"## Keys of {title}\n")[1].split("\n## ")[0]
        first_cells = " ".join(re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE))
        assert set(re.findall(r"`(\w+)`", first_cells)) == set(model.model_fields)


def test_scenes_need_no_torch() -> None:
    code = "import sys, llrag_cli.scenes.reading, llrag_cli.scenes.timeline; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
