"""Memory layouts of a decoder's convolutions, known before torch is imported."""

from __future__ import annotations

from typing import Literal, get_args

Layout = Literal["contiguous", "channels_last_3d"]  # as torch calls them
LayoutOrAuto = Layout | Literal["auto"]  # found by trial on a GPU
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
CONTIGUOUS: Layout = "contiguous"
