"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

# Headings of help pages.
MEMORY: Any = {"rich_help_panel": "Memory"}
COMPUTING: Any = {"rich_help_panel": "Computing"}
MANY: Any = {"rich_help_panel": "Many videos"}

Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the preset; repeatable")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout")]
Backend = Annotated[
    str,
    typer.Option(help="Models of the metrics: offline (inside packages) or official (VBench-Long's, downloaded)"),
]

Rag = Annotated[
    bool, typer.Option("--rag/--no-rag", help="Recall past frames, or see the plain sliding window only", **MEMORY)
]
Memory = Annotated[
    str | None,
    typer.Option(
        metavar="POLICY",
        help="What is recalled: nearest, successor, prompt, diverse, gate, uniform, random, deep-sink",
        **MEMORY,
    ),
]
Encoder = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Retrieval encoder that past frames are found by", **MEMORY)
]
Archive = Annotated[
    str | None,
    typer.Option(
        metavar="TIER",
        help="Where the keys and values of past frames go: device, host, disk (the same video), host-int8, recompute "
        "(nearly the same); auto takes the first that fits",
        **MEMORY,
    ),
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Most memory to take, on the device and on the host each: 8GB; picks --archive",
        **MEMORY,
    ),
]

Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:1; auto is the first GPU, else the CPU", **COMPUTING)]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16; auto suits backbone and device", **COMPUTING)]
Offload = Annotated[
    bool,
    typer.Option(
        "--offload", help="Keep weights on the host, bring them to the GPU layer by layer: slower", **COMPUTING
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(metavar="BACKEND", help="Attention back end of diffusers: native, flash, sage, ...", **COMPUTING),
]
Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the backbone's layers: a slow start, then faster blocks", **COMPUTING),
]

EngineName = Annotated[
    str,
    typer.Option(
        "--engine", metavar="NAME", help="Where many are made: local, local:N (processes), ray[:ADDRESS]", **MANY
    ),
]
GpusPerVideo = Annotated[
    float | None,
    typer.Option("--gpus-per-video", help="Share of a GPU that Ray sets aside for each; default: one, if any", **MANY),
]
