"""Gradients of gradients: a sharded layer has none, and says so where they would be computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from tpinit.runtime.errors import EngineError

__all__ = ["first_order"]

Backward = Callable[..., tuple[Any, ...]]


def first_order(backward: Backward) -> Backward:
    """Let a backward run once: a decorator, under `staticmethod`.

    With `create_graph=True` its gradients raise EngineError when they are differentiated. torch's own decorator says
    nothing, and leaves a term out, where the gradient that comes in depends on no parameter: that of a loss.
    """
    once: Backward = once_differentiable(backward)

    @wraps(backward)
    def run(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return once(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        anchor = torch.zeros((), requires_grad=True)  # autograd records what has an input that needs a gradient
        return tuple(
            _NoFurther.apply(one, anchor) if isinstance(one, torch.Tensor) else one  # type: ignore[no-untyped-call]  # torch leaves apply() untyped
            for one in results
        )

    return run


class _NoFurther(torch.autograd.Function):
    """Returns a gradient as it is, and refuses its own backward."""

    @staticmethod
    def forward(_: Any, grad: torch.Tensor, __: torch.Tensor) -> torch.Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(_: Any, *__: torch.Tensor) -> tuple[None, None]:
        raise EngineError(
            "a gradient of a sharded model was differentiated again (create_graph=True in torch.autograd.grad or "
            "backward): its layers have first derivatives alone. Nothing was updated\n  fix: train such a loss, as a "
            "gradient penalty, without tensor parallelism, or take the gradient of what is behind the sharded layers"
        )
