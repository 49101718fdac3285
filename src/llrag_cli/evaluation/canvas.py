"""A PNG of text and small pictures: fonts, wrapped lines, and pictures that stay sharp at any size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Literal

import matplotlib
from PIL import Image, ImageDraw, ImageFont

Scheme = Literal["light", "dark"]


@dataclass(frozen=True)
class Palette:
    """Colours of a page, the same as in ``templates/base.html``."""

    ink: str
    dim: str
    paper: str
    line: str
    card: str
    accent: str


PALETTES: dict[Scheme, Palette] = {
    "light": Palette(ink="#1d2127", dim="#5d6570", paper="#ffffff", line="#e3e6ea", card="#f6f7f9", accent="#3b6fd4"),
    "dark": Palette(ink="#e8eaed", dim="#9aa2ad", paper="#15181c", line="#2c3138", card="#1d2127", accent="#7fa6ff"),
}


@dataclass(frozen=True)
class Style:
    """How a piece of text looks; ``leading`` is the height of a line in pixels."""

    size: int
    leading: int
    bold: bool = False

    @property
    def font(self) -> ImageFont.FreeTypeFont:
        """The font of this size, from matplotlib's own files."""
        return _font(self.size, bold=self.bold)


@cache
def _font(size: int, *, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf" / name, size)


def wrap(text: str, style: Style, *, width: int, lines: int) -> list[str]:
    """Text in at most so many lines of ``width`` pixels; what does not fit ends in an ellipsis."""
    wrapped: list[str] = []
    rest = " ".join(text.split())
    while rest and len(wrapped) < lines:
        line = _line(rest, style, width)
        left = rest[len(line) :].lstrip()
        if left and len(wrapped) == lines - 1:
            line = _ellipsised(rest, style, width)
        wrapped.append(line.rstrip())
        rest = left
    return wrapped


def _line(text: str, style: Style, width: int) -> str:
    """As much of a text as fits in a line: whole words, or a part of a word that is too long."""
    count = _fitting(text, style, width)
    if count == len(text) or text[count] == " ":
        return text[:count]
    space = text.rfind(" ", 0, count)
    return text[:space] if space > 0 else text[:count]


def _ellipsised(text: str, style: Style, width: int) -> str:
    room = width - ceil(style.font.getlength("…"))
    line = text[: _fitting(text, style, room)]
    whole = line[: max(0, line.rfind(" "))]
    return (whole if len(whole) > len(line) // 2 else line).rstrip(" ,.;:") + "…"


def _fitting(text: str, style: Style, width: int) -> int:
    """How many characters of a text fit, at least one."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if style.font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A picture of another size: pixels stay squares when it grows, and are averaged when it shrinks."""
    factor = max(1, ceil(width / picture.width), ceil(height / picture.height))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    return picture.resize((width, height), Image.Resampling.BOX)


class Canvas:
    """A picture that is drawn on, in pixels from its upper left corner."""

    def __init__(self, width: int, height: int, *, scheme: Scheme) -> None:
        self.palette = PALETTES[scheme]
        self._image = Image.new("RGB", (width, height), self.palette.paper)
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x: int, y: int, lines: list[str], style: Style, *, color: str) -> int:
        """Draw lines below ``y``; returns where the next one would be."""
        for line in lines:
            self._draw.text((x, y + style.leading // 2), line, font=style.font, fill=color, anchor="lm")
            y += style.leading
        return y

    def picture(self, x: int, y: int, picture: Image.Image | None, *, width: int, height: int, missing: str) -> None:
        """Draw a picture, or an empty box with the word ``missing``."""
        if picture is not None:
            self._image.paste(resized(picture, width, height), (x, y))
            return
        self._draw.rectangle((x, y, x + width - 1, y + height - 1), fill=self.palette.card, outline=self.palette.line)
        style = Style(12, 16)
        if style.font.getlength(missing) < width - 8:
            middle = (x + width // 2, y + height // 2)
            self._draw.text(middle, missing, font=style.font, fill=self.palette.dim, anchor="mm")

    def rule(self, y: int, *, left: int, right: int) -> None:
        """Draw a thin horizontal line."""
        self._draw.line((left, y, right, y), fill=self.palette.line)

    def badge(self, x: int, y: int, text: str, style: Style, *, filled: bool) -> int:
        """Draw a short text in a rounded box; returns the box's right edge."""
        right = x + ceil(style.font.getlength(text)) + 14
        color = self.palette.accent if filled else self.palette.line
        self._draw.rounded_rectangle((x, y, right, y + style.leading), radius=style.leading // 2, fill=color)
        ink = self.palette.paper if filled else self.palette.ink
        self._draw.text(((x + right) // 2, y + style.leading // 2), text, font=style.font, fill=ink, anchor="mm")
        return right

    def png(self) -> bytes:
        """The picture as a file."""
        file = BytesIO()
        self._image.save(file, format="PNG", optimize=True)
        return file.getvalue()
