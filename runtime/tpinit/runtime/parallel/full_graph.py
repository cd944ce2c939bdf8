"""Why a sharded model can't be compiled with fullgraph=True."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["NO_FULL_GRAPH", "graph_break"]

Function = TypeVar("Function", bound=Callable[..., object])

NO_FULL_GRAPH = (
    "tpinit: a sharded model can't be one graph, since its ranks check their calls and ids, and start collectives that "
    "run beside the computation; leave fullgraph out"
)
"""The reason of every graph break of a sharded layer, and of the error that torch.compile raises for fullgraph=True."""


def graph_break(function: Function) -> Function:
    """Let a function run eagerly under torch.compile: a decorator."""
    result: Function = torch.compiler.disable(function, reason=NO_FULL_GRAPH)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return result
