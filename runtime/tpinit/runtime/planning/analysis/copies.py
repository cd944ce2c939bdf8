"""A copy of a model must not run the model itself: functions, and bound methods of objects, are not copied with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from tpinit.runtime.errors import PlanError

__all__ = ["apart_from"]


@contextmanager
def apart_from(model: nn.Module) -> Iterator[None]:
    """Refuse calls of the modules of `model` for the time of the context, in which a copy of it runs.

    A forward that was set on an instance, as accelerate does, or a closure may hold a module of the model that was
    copied. Raises PlanError (`forward_failed`) when it is called.
    """
    names = {id(module): name for name, module in model.named_modules()}

    def refuse(module: nn.Module, _: Any) -> None:
        if id(module) in names:
            raise PlanError(
                f"its copy runs {names[id(module)] or 'the model'} of the model itself, which an attribute of an "
                "instance (forward) or a function holds",
                forward_failed=True,
            )

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
