"""Finds what a forward keeps of the outputs of linear layers: in attributes, buffers, lists, caches, Python numbers.

If such a layer were column-parallel, each rank would keep its own slice, and whatever reads it later would not see the
unsharded value. Code of torch and transformers keeps nothing of that kind, so only models with other code are watched.
"""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tpinit.runtime.internals.torch_private import storage_key

__all__ = ["KeptState", "ValueReads", "running_module"]

_VALUE_READS = ("local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "unique", "masked_select")

_EXPORTS = ("tolist", "numpy", "__array__", "__dlpack__", "data_ptr", "__repr__", "__format__")


def _reads_values(operation: str) -> bool:
    """Return whether an operation of torch, by name, makes a Python value or a shape of the values of a tensor."""
    return operation.partition(".")[0].lstrip("_").startswith(_VALUE_READS)


class ValueReads(TorchFunctionMode):
    """Reports the tensors whose values a forward takes out of torch: no operation shows `tolist` and `numpy`."""

    def __init__(self, report: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self._report = report

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Report the tensor that is read, and run the function."""
        if getattr(func, "__name__", "") in _EXPORTS and args and isinstance(args[0], torch.Tensor):
            self._report(args[0])
        return func(*args, **(kwargs or {}))


class KeptState:
    """The tensors of one forward that depend on linear layers, to see which of them outlive it."""

    def __init__(self) -> None:
        self._tensors: list[tuple[weakref.ref[torch.Tensor], frozenset[str]]] = []
        self._created: set[int] = set()
        self._written: set[str] = set()
        self._read: set[str] = set()
        self.readers: set[int] = set()
        """The ids of the modules whose forwards read values of any tensor in Python: their next batch may differ."""

    def add_created(self, tensors: Iterable[torch.Tensor], arguments: Sequence[torch.Tensor] = ()) -> None:
        """Record that an operation on `arguments` returned `tensors`; memory that is not an argument's is new."""
        given = {storage_key(argument) for argument in arguments}
        self._created.update(storage_key(tensor) for tensor in tensors if storage_key(tensor) not in given)

    def add_existing(self, tensor: torch.Tensor) -> None:
        """Record that a tensor stands for one that the model holds."""
        self._created.discard(storage_key(tensor))

    def add(
        self,
        operation: str,
        arguments: Sequence[torch.Tensor],
        results: Sequence[torch.Tensor],
        linears: frozenset[str],
    ) -> None:
        """Record an operation whose results depend on `linears`: what it returns, overwrites, or reads in Python."""
        if _reads_values(operation):
            self.add_read(linears)
        if not linears:
            return
        self._tensors += [(weakref.ref(tensor), linears) for tensor in results]
        given = {id(argument) for argument in arguments}
        for tensor in results:
            if id(tensor) in given and storage_key(tensor) not in self._created:
                self._written |= linears

    def add_read(self, linears: frozenset[str]) -> None:
        """Record that values that depend on `linears` are read outside of torch, by the innermost running module."""
        self._read |= linears
        reader = running_module()
        if reader is not None:
            self.readers.add(id(reader))

    def reasons(self) -> dict[str, str]:
        """Return the linear layers of whose outputs something is kept, with the reason. Call it when all is freed."""
        alive = self._alive()
        if alive:
            gc.collect()  # a cycle, such as that of a traceback, may hold a tensor
            alive = self._alive()
        return {
            **dict.fromkeys(alive, "the forward keeps a tensor that is computed from its output"),
            **dict.fromkeys(self._written, "the forward writes its output into a tensor that exists already"),
            **dict.fromkeys(self._read, "the forward reads values that are computed from its output in Python"),
        }

    def _alive(self) -> set[str]:
        return {name for tensor, linears in self._tensors if tensor() is not None for name in linears}


def running_module() -> nn.Module | None:
    """Return the module whose forward is the innermost one in the stack of calls; None outside of any."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            return owner
        frame = frame.f_back
    return None
