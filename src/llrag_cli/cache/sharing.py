"""Which buffers of what a block attends to the layers of a backbone share."""

from __future__ import annotations

from typing import Literal, get_args

Sharing = Literal["none", "values", "all"]  # a shared one is gathered anew by each layer in each pass
SHARINGS: tuple[Sharing, ...] = get_args(Sharing)
