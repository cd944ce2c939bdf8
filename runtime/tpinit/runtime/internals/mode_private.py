"""Private names of torch's modes, which change what functions do, and of what torch.compile adds to modules."""

from __future__ import annotations

from typing import Any

import torch.overrides
from torch.utils import _python_dispatch

__all__ = ["COMPILED_NAMES", "PRIVATE_NAMES", "dispatch_modes", "function_modes"]

PRIVATE_NAMES: dict[str, str] = {
    "torch.overrides._get_current_function_mode_stack": "the modes around a forward, which may replace any function",
    "torch.utils._python_dispatch._get_current_dispatch_mode_stack": "the same of modes that see aten operators",
    "__compiled_fn": "the beginning of the names that torch.compile adds to a module for its own code",
    "__resume_at": "the same, behind a graph break",
}
"""Every private name, and private behaviour, of torch's modes and compiler that the runtime leans on; and what for."""

COMPILED_NAMES = ("__compiled_fn", "__resume_at")
"""The beginnings of the names that torch.compile adds to the module of a function that it compiled."""


def function_modes() -> list[Any]:
    """Return the TorchFunctionModes that are active in this thread, outermost first."""
    return list(torch.overrides._get_current_function_mode_stack())  # type: ignore[no-untyped-call]  # torch leaves it untyped


def dispatch_modes() -> list[Any]:
    """Return the TorchDispatchModes that are active in this thread, outermost first."""
    return list(_python_dispatch._get_current_dispatch_mode_stack())
