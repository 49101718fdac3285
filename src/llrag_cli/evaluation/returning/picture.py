"""The picture of a study: C, A, B, A again and later moments, under three conditions, for the first scenes."""

from __future__ import annotations

from PIL import Image

from llrag_cli.evaluation.canvas import Canvas, Style, wrap
from llrag_cli.evaluation.returning.returns import CONDITIONS, GIVEN
from llrag_cli.evaluation.returning.study import Study, unstripped

SCENES = 4  # the first ones of the pool, whatever they show, with their first seed
SHOWN = ("native", "nearest", "random")
CELL, GAP, MARGIN, LABEL = 96, 8, 28, 250  # pixels
NAME, SMALL = Style(14, 20, bold=True), Style(12, 16)
GIVEN_TITLES = {"C": "C", "A": "A", "B": "B", "again": "A again"}


def sheet(study: Study) -> bytes:
    """A PNG: for each scene a row of frames under each condition."""
    plan = study.plan
    shown = [name for name in SHOWN if name in plan.conditions] or list(plan.conditions[: len(SHOWN)])
    titles = [*(GIVEN_TITLES[name] for name in GIVEN), *(f"after {second:.3g} s" for second in plan.moments)]
    scenes = plan.returns[:SCENES]
    block = len(shown) * (CELL + GAP) + 2 * GAP  # height of a scene
    head = NAME.leading + GAP
    width = 2 * MARGIN + LABEL + len(titles) * (CELL + GAP)
    canvas = Canvas(width, 2 * MARGIN + head + len(scenes) * block, scheme="light")
    left = [MARGIN + LABEL + GAP + column * (CELL + GAP) for column in range(len(titles))]
    for x, title in zip(left, titles, strict=True):
        canvas.text(x, MARGIN, [title], NAME, color=canvas.palette.ink)
    for number, back in enumerate(scenes, start=1):
        top = MARGIN + head + (number - 1) * block
        canvas.rule(top - GAP, left=MARGIN, right=width - MARGIN)
        prompts = [*sorted(back.prompts.items()), ("A goes on", back.caption)]
        for row, name in enumerate(shown):
            y = canvas.text(MARGIN, top, [f"{name}: {CONDITIONS[name].about}"], SMALL, color=canvas.palette.ink)
            for about, prompt in prompts if row == 0 else ():
                lines = wrap(f"{about}: {prompt}", SMALL, width=LABEL, lines=2)
                y = canvas.text(MARGIN, y, lines, SMALL, color=canvas.palette.dim)
            file = study.picture(number, 0, name)
            cells = unstripped(Image.open(file).convert("RGB"), len(titles)) if file.exists() else [None] * len(titles)
            for x, cell in zip(left, cells, strict=True):
                canvas.picture(x, top, cell, width=CELL, height=CELL, missing="not made")
            top += CELL + GAP
    return canvas.png()
