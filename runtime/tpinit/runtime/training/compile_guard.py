"""`compile` of a sharded model, its modules and its engine: right, but for fullgraph=True, which is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from torch import nn
from tpinit.runtime.errors import EngineError
from tpinit.runtime.parallel.full_graph import NO_FULL_GRAPH

__all__ = ["compile_engine", "guard_compile"]


def compile_engine(
    engine: nn.Module,
    backend: str | Callable[..., Any] = "inductor",
    compile_kwargs: Mapping[str, Any] | None = None,
    schedule: Any = None,
    compiled_autograd_enabled: bool = False,
    **options: Any,
) -> None:
    """Compile an engine with torch.compile. The arguments are DeepSpeed's; `options` are torch.compile's.

    Raises EngineError for what belongs to DeepSpeed's compiler: a schedule of passes, compiled autograd.
    """
    if schedule is not None or compiled_autograd_enabled:
        raise EngineError(
            "engine.compile: schedule and compiled_autograd_enabled belong to DeepCompile, which is not here: leave "
            "them out"
        )
    nn.Module.compile(engine, backend=backend, **{**(compile_kwargs or {}), **options})


def guard_compile(engine: nn.Module) -> None:
    """Put a guard on `compile` of an engine and of every module inside."""
    for module in engine.modules():
        module.__dict__["compile"] = MethodType(_compile, module)


def _compile(module: nn.Module, *args: Any, **kwargs: Any) -> None:
    if (kwargs.get("compile_kwargs") or kwargs).get("fullgraph") or (args and args[0] is True):
        raise EngineError(f"{type(module).__name__}.compile(fullgraph=True): {NO_FULL_GRAPH}")
    type(module).compile(module, *args, **kwargs)
