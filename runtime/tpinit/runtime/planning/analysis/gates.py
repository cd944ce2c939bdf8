"""Opens gates in fake forwards of unknown code: what a condition or a zero hides now may be computed in a later batch.

`torch.where` with two computed values returns one and adds a part of the other; a product with a gate that is zero (a
buffer that a schedule raises, a parameter that starts at zero) takes one half for it. Both are elementwise, so a slice
of the result is still the result of slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tpinit.runtime.internals.torch_private import PlainDispatchMode

__all__ = ["GatesOpen", "with_open_gates"]

_aten = torch.ops.aten
_PART = 0.5
_FINITE = 1e9  # masks hold larger numbers, and infinity
_PRODUCTS = (_aten.mul.Tensor, _aten.mul_.Tensor)


def with_open_gates(func: Any, args: Any) -> Callable[..., Any] | None:
    """Return a function that takes the same arguments as `func`, with its gates open; None if it has no closed one."""
    if func is _aten.where.self:
        return _both if all(map(_is_computed, args[1:])) else None
    if func in _PRODUCTS and isinstance(args[1], torch.Tensor):
        closed = [_is_closed(args[0]) and func is _PRODUCTS[0], _is_closed(args[1])]
        if closed[0] is not closed[1]:
            return lambda one, other: func(_opened(one), other) if closed[0] else func(one, _opened(other))
    if func is _aten.lerp.Tensor and _is_closed(args[2]):
        return lambda start, end, weight: func(start, end, _opened(weight))
    return None


class GatesOpen(PlainDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """A dispatch mode under which gates are open."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (with_open_gates(func, args) or func)(*args, **(kwargs or {}))


def _both(condition: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.where(condition, one, other) + _PART * torch.where(condition, other, one)


def _is_computed(value: Any) -> bool:
    """Return whether a branch is a tensor of several finite numbers, and not a constant."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.is_meta or value.dim() == 0:
        return False
    return bool((value.abs() < _FINITE).all())


def _is_closed(value: Any) -> bool:
    """Return whether a tensor is zero and the same for all features, so that no rank holds a part of it."""
    if not isinstance(value, torch.Tensor) or value.is_meta or value.is_complex():
        return False
    return (value.dim() == 0 or value.shape[-1] == 1) and value.numel() > 0 and not bool(value.any())


def _opened(value: torch.Tensor) -> torch.Tensor:
    return torch.full_like(value, _PART, dtype=value.dtype if value.is_floating_point() else torch.float32)
