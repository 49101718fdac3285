"""The picture of a study: C, A, B, A again and later moments, under three conditions, for the first scenes."""

from __future__ import annotations

from PIL import Image

from llrag_cli.evaluation.canvas import Canvas, Style, wrap
from llrag_cli.evaluation.returning.plan import GIVEN
from llrag_cli.evaluation.returning.study import Study, unstripped

SCENES = 4  # the first ones of the pool, whatever they show, with their first seed
SHOWN = ("native", "nearest", "random")
CELL, GAP, MARGIN, TEXT, LABEL = 96, 8, 28, 230, 80  # pixels; the last two are widths of columns
NAME, SMALL = Style(14, 20, bold=True), Style(12, 16)
TITLES = {"again": "A again"}


def sheet(study: Study) -> bytes:
    """A PNG: for each scene a row of frames under each condition."""
    plan = study.plan
    conditions = plan.measured
    shown = [name for name in SHOWN if name in conditions] or [*conditions][: len(SHOWN)]
    titles = [*(TITLES.get(name, name) for name in GIVEN), *(f"after {second:.3g} s" for second in plan.moments)]
    scenes = study.returns[:SCENES]
    texts = [
        [
            line
            for about, prompt in (*sorted(back.prompts.items()), ("A goes on", back.caption))
            for line in wrap(f"{about}: {prompt}", SMALL, width=TEXT, lines=3)
        ]
        for back in scenes
    ]
    heights = [max(len(shown) * (CELL + GAP), len(text) * SMALL.leading + GAP) + GAP for text in texts]
    left = [MARGIN + TEXT + GAP + LABEL + column * (CELL + GAP) for column in range(len(titles))]
    width = left[-1] + CELL + MARGIN
    top = MARGIN + NAME.leading + 2 * GAP
    canvas = Canvas(width, top + sum(heights) + MARGIN, scheme="light")
    for x, title in zip(left, titles, strict=True):
        canvas.text(x, MARGIN, [title], NAME, color=canvas.palette.ink)
    for number, (text, height) in enumerate(zip(texts, heights, strict=True), start=1):
        canvas.rule(top - GAP, left=MARGIN, right=width - MARGIN)
        canvas.text(MARGIN, top, text, SMALL, color=canvas.palette.dim)
        for row, name in enumerate(shown):
            y = top + row * (CELL + GAP)
            below = canvas.text(MARGIN + TEXT + GAP, y, [name], NAME, color=canvas.palette.ink)
            about = wrap(conditions[name].about, SMALL, width=LABEL - GAP, lines=4)
            canvas.text(MARGIN + TEXT + GAP, below, about, SMALL, color=canvas.palette.dim)
            file = study.picture(number, 0, name)
            cells = unstripped(Image.open(file).convert("RGB"), len(titles)) if file.exists() else [None] * len(titles)
            for x, cell in zip(left, cells, strict=True):
                canvas.picture(x, y, cell, width=CELL, height=CELL, missing="not made")
        top += height
    return canvas.png()
