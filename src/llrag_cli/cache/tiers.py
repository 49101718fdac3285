"""Where the keys and values of frames outside the window can be kept."""

from __future__ import annotations

from typing import Literal, get_args

Tier = Literal["device", "host", "host-int8", "disk", "recompute"]
TIERS: tuple[Tier, ...] = get_args(Tier)
EXACT: tuple[Tier, ...] = ("device", "host", "disk")  # these write the same video, byte for byte
