"""How a backbone is run: what is offloaded, and only where it is asked for."""

from __future__ import annotations

import pytest
import torch

from llrag_cli.engine.execution import Execution, new_backbone
from llrag_cli.models.embedded.model import new_transformer
from llrag_cli.presets import load_config


@pytest.mark.parametrize(("how", "offloads"), [(Execution(), False), (Execution(offload=True), True)])
def test_layers_are_offloaded_where_it_is_asked_for(how: Execution, offloads: bool) -> None:
    transformer = new_transformer()
    new_backbone(transformer, torch.device("cpu"), how, load_config())
    hooked = [name for name, module in transformer.named_modules() if hasattr(module, "_diffusers_hook")]
    assert bool(hooked) == any(name.startswith("blocks.") for name in hooked) == offloads
