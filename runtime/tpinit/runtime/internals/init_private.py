"""Private names of torch.nn.init: what its functions call to draw, and to count the inputs of a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.nn import init

__all__ = ["PRIVATE_NAMES", "check_before_draws"]

PRIVATE_NAMES: dict[str, str] = {
    "torch.nn.init._no_grad_uniform_": "what uniform_ and xavier_uniform_ draw by",
    "torch.nn.init._no_grad_normal_": "what normal_ and xavier_normal_ draw by",
    "torch.nn.init._no_grad_trunc_normal_": "what trunc_normal_ draws by",
    "torch.nn.init._calculate_fan_in_and_fan_out": "what xavier and kaiming functions read the shape by",
}
"""Every private name that the runtime leans on here, and what for. Callers who imported a function call them too."""

_WHOLE = ("eye_", "dirac_", "orthogonal_", "sparse_")  # they call none of the above
_MARK = "tp_original"


def check_before_draws(check: Callable[[torch.Tensor], None]) -> None:
    """Call `check`, which may raise, with each tensor that torch.nn.init is to draw, or to fill by its shape."""
    for name in (*(one.rpartition(".")[2] for one in PRIVATE_NAMES), *_WHOLE):
        original = vars(init)[name]
        if not hasattr(original, _MARK):
            setattr(init, name, _checked(original, check))


def _checked(original: Callable[..., Any], check: Callable[[torch.Tensor], None]) -> Callable[..., Any]:
    @wraps(original)
    def checked(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        check(tensor)
        return original(tensor, *args, **kwargs)

    setattr(checked, _MARK, original)
    return checked
