"""Private names of torch's functions over lists of tensors, which its clipping of gradients calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _foreach_utils

__all__ = ["PRIVATE_NAMES", "foreach_functions", "support_foreach"]

PRIVATE_NAMES: dict[str, str] = {
    "torch._foreach_*": "clipping, and zero_grad, compute over lists of gradients by them",
    "torch.utils._foreach_utils._foreach_supported_types": "the types of gradients over which torch uses them",
}
"""Every private name that the runtime leans on here, and what for."""

_ELEMENTWISE = (
    "abs neg sign sqrt reciprocal exp log add sub mul div pow clamp_min clamp_max maximum minimum addcmul addcdiv lerp "
    "zero copy"
)


def foreach_functions() -> Iterator[Callable[..., Any]]:
    """Yield the functions over lists of tensors that compute entry by entry."""
    for name in _ELEMENTWISE.split():
        for form in (f"_foreach_{name}", f"_foreach_{name}_"):
            if hasattr(torch, form):
                yield getattr(torch, form)


def support_foreach(kind: type[torch.Tensor]) -> None:
    """Let torch use functions over lists for gradients of a class, as for plain tensors."""
    types: list[Any] = _foreach_utils._foreach_supported_types
    if kind not in types:
        types.append(kind)
