"""``llrag doctor --card``: which options make a backbone fit a GPU, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llrag_cli.cache.sharing import Sharing
from llrag_cli.cli.options import configuration

if TYPE_CHECKING:
    from llrag_cli.planning import Budget


@dataclass(frozen=True)
class Choice:
    """Options that need less memory of a GPU."""

    decoder: str = "full"
    sharing: Sharing = "none"
    int8: bool = False
    offload: bool = False

    @property
    def options(self) -> str:
        """As they are typed."""
        chosen = {
            "--decoder tiny": self.decoder == "tiny",
            f"--share-buffers {self.sharing}": self.sharing != "none",
            "--quantize int8 --compile": self.int8,
            "--offload": self.offload,
        }
        return " ".join(option for option, on in chosen.items() if on) or "none"

    @property
    def cost(self) -> str:
        """What one pays."""
        costs = {
            "a preview; `llrag decode` makes the final video": self.decoder == "tiny",
            "the values of the context are gathered in every pass": self.sharing == "values",
            "the context is gathered in every pass": self.sharing == "all",
            "layers in eight bits, and a slow start": self.int8,
            "weights cross the bus in every pass": self.offload,
        }
        return "; ".join(cost for cost, on in costs.items() if on)


CHOICES = (  # the cheapest first
    Choice(),
    Choice(sharing="values"),
    Choice(sharing="all"),
    Choice(sharing="all", int8=True),
    Choice(decoder="tiny"),
    Choice(decoder="tiny", sharing="values"),
    Choice(decoder="tiny", sharing="all"),
    Choice(decoder="tiny", sharing="all", int8=True),
    Choice(sharing="all", offload=True),
    Choice(decoder="tiny", sharing="all", offload=True),
)


def show_card(backbone: str, card: int, *, seconds: float, rag: bool | None, dtype: str, as_json: bool) -> None:
    """Print the plan of each choice for a GPU of so many bytes."""
    from rich.table import Table

    from llrag_cli.cli import console
    from llrag_cli.formatting import human

    with console.working("planning"):
        budgets = {choice: _plan(backbone, card, choice, seconds=seconds, rag=rag, dtype=dtype) for choice in CHOICES}
    fitting = next((choice for choice, budget in budgets.items() if _fits(budget)), None)
    if as_json:
        rows = [
            {
                "options": choice.options,
                "cost": choice.cost,
                "device_bytes": budget.total("device"),
                "host_bytes": budget.total("host"),
                "fits": _fits(budget),
            }
            for choice, budget in budgets.items()
        ]
        chosen = None if fitting is None else fitting.options
        console.result_json({"backbone": backbone, "seconds": seconds, "card": card, "chosen": chosen, "plans": rows})
        return
    room = human(next(iter(budgets.values())).room("device") or 0)
    table = Table("options", f"of {room} on the card", "on the host", "", "cost", box=None, pad_edge=False)
    for choice, budget in budgets.items():
        verdict = "fits" if _fits(budget) else "does not fit"
        row = (human(budget.total("device")), human(budget.total("host")), verdict, choice.cost)
        table.add_row(choice.options, *row)
    console.result_table(table)
    if fitting is None:
        console.result("no choice fits: make the picture or the window smaller")
    else:
        console.result(f"the cheapest that fits: {fitting.options}")
    console.result("counted from shapes; the libraries' own memory is estimated")


def _plan(backbone: str, card: int, choice: Choice, *, seconds: float, rag: bool | None, dtype: str) -> Budget:
    import torch

    from llrag_cli.engine.devices import find_dtype
    from llrag_cli.files.paths import weights_folder
    from llrag_cli.memory.strategies import RetrievalMemory
    from llrag_cli.models.family import family_of
    from llrag_cli.planning import plan

    chosen = [f"video.decoder={choice.decoder}", *(["backbone.quantize=int8"] if choice.int8 else [])]
    config = configuration(backbone, rag=rag, settings=chosen)
    if isinstance(config.memory, RetrievalMemory):
        config = configuration(backbone, rag=rag, archive="host", settings=chosen)
    gpu = torch.device("cuda")
    family = family_of(config)
    settings: dict[str, Any] = {"offload": choice.offload, "sharing": choice.sharing, "card": card}
    return plan(
        config,
        weights_folder(),
        device=gpu,
        dtype=find_dtype(dtype, gpu, family=family),
        seconds=seconds,
        scratch=Path("runs"),
        **settings,
    )


def _fits(budget: Budget) -> bool:
    """Whether it fits the card; what the host of this machine has says nothing about another."""
    room = budget.room("device")
    return room is not None and budget.total("device") <= room
