"""The picture of a study: place A, place B, and the return under each condition, for the first scenes."""

from __future__ import annotations

from llrag_cli.evaluation.canvas import Canvas, Style, wrap
from llrag_cli.evaluation.leave_return.plan import CONDITIONS
from llrag_cli.evaluation.leave_return.study import Study
from llrag_cli.evaluation.places import full_prompt
from llrag_cli.files.image import open_image

SCENES = 6  # the first ones of the pool, whatever they show, with their first seed
CELL, GAP, MARGIN, LABEL = 128, 12, 28, 236  # pixels
NAME, SMALL = Style(14, 20, bold=True), Style(12, 16)
ABOUT = {
    "A": "the place, with its full prompt",
    "B": "another place, after a cut",
    **{name: f"C remembers {condition.about}" for name, condition in CONDITIONS.items()},
}


def sheet(study: Study) -> bytes:
    """A PNG: a row for each scene, with the middle frame of each shot."""
    trips = study.trips[:SCENES]
    captions = {shot: wrap(about, SMALL, width=CELL, lines=4) for shot, about in ABOUT.items()}
    head = NAME.leading + SMALL.leading * max(map(len, captions.values())) + GAP
    width = MARGIN + LABEL + len(ABOUT) * (CELL + GAP) + MARGIN
    canvas = Canvas(width, 2 * MARGIN + head + len(trips) * (CELL + GAP), scheme="light")
    left = {shot: MARGIN + LABEL + GAP + column * (CELL + GAP) for column, shot in enumerate(ABOUT)}
    for shot, lines in captions.items():
        below = canvas.text(left[shot], MARGIN, [shot], NAME, color=canvas.palette.ink)
        canvas.text(left[shot], below, lines, SMALL, color=canvas.palette.dim)
    for number, trip in enumerate(trips, start=1):
        y = top = MARGIN + head + (number - 1) * (CELL + GAP)
        prompts = {"A": full_prompt(trip.first), "B": full_prompt(trip.second), "C": trip.return_prompt}
        for name, prompt in prompts.items():
            y = canvas.text(
                MARGIN, y, wrap(f"{name}: {prompt}", SMALL, width=LABEL, lines=3), SMALL, color=canvas.palette.ink
            )
        for shot in ABOUT:
            file = study.picture(number, 0, shot)
            picture = open_image(file) if file.exists() else None
            canvas.picture(left[shot], top, picture, width=CELL, height=CELL, missing="not made")
    return canvas.png()
