"""Back ends of the metrics by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llrag_cli.errors import LlragError, UsageError, closest

if TYPE_CHECKING:
    from llrag_cli.evaluation.metrics.score import BackEnd

BACK_ENDS = ("offline", "official")


def find_back_end(kind: str, device: str) -> BackEnd:
    """A back end, its models loaded.

    Raises ``LlragError`` where a package or a file is missing.
    """
    if kind not in BACK_ENDS:
        raise UsageError(f"there is no back end `{kind}`", hint=closest(kind, BACK_ENDS))
    try:
        if kind == "offline":
            from llrag_cli.evaluation.metrics.score import offline

            return offline()
        from llrag_cli.engine.devices import find_device
        from llrag_cli.evaluation.metrics.official import official
        from llrag_cli.files.paths import weights_folder

        return official(weights_folder(), find_device(device))
    except ImportError as error:
        raise LlragError(
            f"what metrics need is not installed: no module `{error.name}`", hint="`pip install 'llrag[metrics]'`"
        ) from None
