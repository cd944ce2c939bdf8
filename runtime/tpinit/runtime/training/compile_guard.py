"""`compile` of a sharded model, its modules and its engine: right, but for fullgraph=True, which is refused."""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import nn
from tpinit.runtime.errors import EngineError
from tpinit.runtime.parallel.full_graph import NO_FULL_GRAPH

__all__ = ["guard_compile"]


def guard_compile(engine: nn.Module) -> None:
    """Put a guard on `compile` of an engine and of every module inside."""
    for module in engine.modules():
        module.__dict__["compile"] = MethodType(_compile, module)


def _compile(module: nn.Module, *args: Any, **kwargs: Any) -> None:
    if kwargs.get("fullgraph") or (args and args[0] is True):
        raise EngineError(f"{type(module).__name__}.compile(fullgraph=True): {NO_FULL_GRAPH}")
    type(module).compile(module, *args, **kwargs)
