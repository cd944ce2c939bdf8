"""Count every collective of one step at torch's dispatcher, below the code of all peers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import _resolve_process_group
from torch.distributed.distributed_c10d import GroupName
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["StepCounts", "tally"]

_SPACES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor")
_SILENT = ("barrier", "wait_tensor", "_wrap_tensor_autograd", "monitored_barrier_")


@dataclass
class StepCounts:
    """Collectives by name over groups of more than one rank; `alone` counts those over groups of one rank.

    `sent` is in bytes, what one rank sends if the collective runs as a ring: 2 (n - 1) / n of an all-reduce's tensor,
    (n - 1) / n of the full tensor of an all-gather or a reduce-scatter. `largest` is the largest tensor in bytes.
    """

    calls: Counter[str] = field(default_factory=Counter)
    sent: float = 0.0
    largest: int = 0
    alone: int = 0


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    tp_only_watches = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.tally = StepCounts()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # DTensor runs first, and its local operations are dispatched here again
        if func.namespace in _SPACES:
            _count(self.tally, func._schema.name.split("::")[1], [*args, *(kwargs or {}).values()])
        return func(*args, **(kwargs or {}))


def tally(step: Callable[[], object]) -> StepCounts:
    """Run one step and return the count of its collectives."""
    watch = _Watch()
    with watch:
        step()
    return watch.tally


def _count(into: StepCounts, name: str, arguments: list[Any]) -> None:
    if name in _SILENT:
        return
    ranks = _ranks(arguments)
    if ranks == 1:
        into.alone += 1
        return
    tensors = [sum(tensor.nbytes for tensor in _tensors(argument)) for argument in arguments[:2]]
    size = max(tensors)
    kind = name.strip("_").replace("_", "")
    if "gather" in kind and "_into_tensor" in name:
        size *= ranks  # the functional form has its input only as an argument
    into.calls[_plain(kind)] += 1
    into.largest = max(into.largest, size)
    share = {
        "all-reduce": 2 * (ranks - 1) / ranks,
        "all-gather": (ranks - 1) / ranks,
        "reduce-scatter": (ranks - 1) / ranks,
    }
    into.sent += size * share.get(_plain(kind), 1.0)


def _plain(kind: str) -> str:
    for part, plain in (("allreduce", "all-reduce"), ("allgather", "all-gather"), ("reducescatter", "reduce-scatter")):
        if part in kind:
            return plain
    return kind


def _ranks(arguments: list[Any]) -> int:
    for argument in arguments:
        if isinstance(argument, torch.ScriptObject):
            try:
                return int(dist.ProcessGroup.unbox(argument).size())
            except (RuntimeError, TypeError):
                continue
        if isinstance(argument, dist.ProcessGroup):
            return int(argument.size())
        if isinstance(argument, str):
            try:
                return int(_resolve_process_group(GroupName(argument)).size())
            except (RuntimeError, ValueError):
                continue
    return dist.get_world_size()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
