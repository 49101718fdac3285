"""Draws docs/contact-sheet.png: frames of four videos of the embedded model, read back from the video files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from llrag_cli import Pipeline, RunFolder, make_video, read_video

PROMPTS = (
    "a red circle and a white cross pass by on a striped blue wall",
    "a big yellow triangle bounces around on a plain pink wall",
    "a purple square and an orange circle go round on a dotted gray wall",
    "a little blue cross is bouncing over a striped green backdrop",
)
SECONDS, COLUMNS, SIDE, LINE = 10, 8, 128, 26
TARGET = Path(__file__).with_name("contact-sheet.png")


def main(path: Path = TARGET) -> None:
    """Generate the videos, take frames at equal distances, and write the picture."""
    pipeline = Pipeline.load("tiny")
    sheet = Image.new("RGB", (COLUMNS * SIDE, len(PROMPTS) * (SIDE + LINE)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
    with tempfile.TemporaryDirectory() as scratch:
        for row, prompt in enumerate(PROMPTS):
            folder = RunFolder(Path(scratch) / str(row))
            make_video(pipeline, prompt, folder, seconds=SECONDS)
            frames = read_video(folder.video)
            top = row * (SIDE + LINE)
            draw.text((4, top + 4), prompt, fill="black", font=font)
            for column in range(COLUMNS):
                frame = frames[column * (len(frames) - 1) // (COLUMNS - 1)]
                pixels = (frame.permute(1, 2, 0) * 255).to(torch.uint8).numpy()
                picture = Image.fromarray(pixels).resize((SIDE - 2, SIDE - 2), Image.Resampling.LANCZOS)
                sheet.paste(picture, (column * SIDE + 1, top + LINE))
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    main()
