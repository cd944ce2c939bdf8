"""Private names of torch's wrappers around models, and of functions that decorators wrap."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import CellType
from typing import Any

from torch import nn

__all__ = ["PRIVATE_NAMES", "closure_cell", "forget_fully_shard"]

PRIVATE_NAMES: dict[str, str] = {
    "fsdp.fully_shard": "a closure around `func`, which is replaced for those who imported it before",
    "_composable.contract.STATE_KEY": "where fully_shard marks a module before it looks at it",
    "_composable.contract.REGISTRY_KEY": "the same",
}
"""Every private name, and private behaviour, of torch's wrappers that the runtime leans on; and what for."""


def closure_cell(function: Any, name: str) -> CellType:
    """Return the cell of a variable that a function took from around it: what its decorator wraps, for all callers."""
    found: CellType = function.__closure__[function.__code__.co_freevars.index(name)]
    return found


def forget_fully_shard(modules: Iterable[nn.Module], function: Any) -> None:
    """Remove the marks of a `fully_shard` that was refused. `function` is what its decorator wraps."""
    contract: Any = sys.modules["torch.distributed._composable.contract"]
    for module in modules:
        vars(module).get(contract.STATE_KEY, {}).pop(function, None)
        vars(module).get(contract.REGISTRY_KEY, {}).pop("fully_shard", None)
