"""Layers that take or return a part of a tensor run inside a module whose output is whole, and not by themselves.

Called by itself (`model.layers[0].mlp.up_proj(x)`), a column-parallel layer would return one rank's features as if they
were all. So such a layer runs in a forward of its model; in the call of a module that holds all layers that belong
together (`model.layers[0].mlp(x)`); and in a backward pass, where activation checkpointing runs it again.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from tpinit.runtime.errors import EngineError
from tpinit.runtime.internals.torch_private import CALL_METHODS, backward_number, unwrapped
from tpinit.runtime.parallel.forward_scope import ForwardScope
from tpinit.runtime.parallel.full_graph import graph_break

__all__ = ["check_enclosed", "mark_layer", "mark_whole"]

_LAYER, _WHOLE = "tp_layer", "tp_is_whole"
_CALLS = frozenset(("forward", *CALL_METHODS))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a layer belongs: the scope of its model, its name, what it is if it takes parts, and what to call then."""

    scope: ForwardScope
    name: str
    what: str
    block: str


def mark_whole(module: nn.Module) -> None:
    """Note that a module with sharded layers inside takes and returns whole tensors."""
    module.__dict__[_WHOLE] = True


def mark_layer(module: nn.Module, scope: ForwardScope, name: str, what: str, block: str) -> None:
    """Note how a layer `name` is called by itself.

    `what` says for an error what it is, and what of its tensors is a part; empty for a layer that is right by itself.
    `block` is the module around it to call instead, empty for the model.
    """
    module.__dict__[_LAYER] = _Place(scope, name, what, block)


def check_enclosed(layer: Any) -> None:
    """Raise EngineError if a layer that takes parts runs in no forward of its model, and in no call of a whole module.

    In a forward of the model this reads two attributes. Outside it looks through the stack of calls, and lets the
    scope of the model know that a part of the model was called.
    """
    place: _Place | None = layer.__dict__.get(_LAYER)
    if place is not None and not place.scope.active:
        _check_callers(layer, place)


@graph_break
def _check_callers(layer: nn.Module, place: _Place) -> None:
    if backward_number() != -1:
        return
    if not place.what or any(_holds(module, layer) for module in _running_modules()):
        place.scope.on_lone_call()
        return
    there = f"`{place.block}`" if place.block else "the model"
    raise EngineError(
        f"{place.name} was called by itself, outside of {there}: it is {place.what}. Call {there}, whose input and "
        "output are whole, or keep the layer whole (partition_type skip in partition_config)"
    )


def _running_modules() -> Iterator[nn.Module]:
    """Yield the modules whose forward runs in this thread, innermost first."""
    for frame, _ in traceback.walk_stack(inspect.currentframe()):
        code = frame.f_code
        if code.co_name in _CALLS and code.co_argcount:
            module = frame.f_locals.get(code.co_varnames[0])
            if isinstance(module, nn.Module):
                yield unwrapped(module)


def _holds(module: nn.Module, layer: nn.Module) -> bool:
    """Return whether a module is whole, and has the layer inside."""
    return bool(module.__dict__.get(_WHOLE)) and any(inner is layer for inner in module.modules())
