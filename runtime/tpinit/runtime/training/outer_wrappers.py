"""Wrappers of torch around a sharded model: a data-parallel one is right over the data-parallel ranks, and only there.

DistributedDataParallel makes the parameters of all ranks of its group those of the first one. Without a group that is
the world: every rank of a TP group would hold the first one's parts, and train without an error. From the first
`initialize` on the wrappers look at what they are given; other models pass as before.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import update_wrapper, wraps
from typing import Any

import torch.distributed as dist
from torch import nn
from tpinit.runtime.errors import EngineError
from tpinit.runtime.internals.wrapper_private import closure_cell, forget_fully_shard
from tpinit.runtime.training.sharded_tensors import ShardedTensors, sharded_models

__all__ = ["watch_wrappers"]

_MARK = "tp_original"
_Check = Callable[[ShardedTensors, dict[str, Any]], None]


def watch_wrappers() -> None:
    """Put a check in front of torch's wrappers, once for each; of those in modules that are not imported yet, none."""
    _watch_init(nn.parallel.DistributedDataParallel, _check_data_parallel)
    _watch_init(nn.DataParallel, _refuse("DataParallel"))
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None:
        _watch_init(fsdp.FullyShardedDataParallel, _refuse("FullyShardedDataParallel"))
        cell = closure_cell(fsdp.fully_shard, "func")
        if not hasattr(cell.cell_contents, _MARK):
            cell.cell_contents = _FullyShard(cell.cell_contents)


class _FullyShard:
    """What stands in the place of the function that `fully_shard` wraps, equal to it: models are marked by it."""

    def __init__(self, original: Callable[..., Any]) -> None:
        update_wrapper(self, original)
        self.tp_original = original

    def __call__(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """Raise EngineError for a sharded model or a part of one, which is as it was then."""
        modules = module if isinstance(module, (list, tuple)) else [module]
        owner = _owner(modules)
        if owner is not None:
            forget_fully_shard(modules, self)
            _refuse("fully_shard")(owner, {})
        return self.tp_original(module, *args, **kwargs)

    def __eq__(self, other: object) -> bool:
        return other is self or other is self.tp_original

    def __hash__(self) -> int:
        return hash(self.tp_original)


def _watch_init(kind: Any, check: _Check) -> None:
    if not hasattr(kind.__init__, _MARK):
        kind.__init__ = _checked(kind.__init__, check)


def _checked(original: Callable[..., Any], check: _Check) -> Callable[..., Any]:
    """Return an `__init__` that checks the module that it gets, and calls `original`."""
    signature = inspect.signature(original)

    @wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        named = signature.bind_partial(*args, **kwargs).arguments
        owner = _owner([named.get("module")])
        if owner is not None:
            check(owner, named)
        return original(*args, **kwargs)

    setattr(call, _MARK, original)
    return call


def _owner(modules: Any) -> ShardedTensors | None:
    """Return the sharded model of which some of `modules` hold parameters; None without one."""
    held = {id(parameter) for one in modules if isinstance(one, nn.Module) for parameter in one.parameters()}
    return next((model for model in sharded_models() if not held.isdisjoint(model.ids)), None)


def _check_data_parallel(model: ShardedTensors, named: dict[str, Any]) -> None:
    """Raise EngineError unless the wrapper's ranks are data-parallel ranks of the model."""
    mesh, group = named.get("device_mesh"), named.get("process_group")
    ranks = dist.get_process_group_ranks(mesh.get_group() if mesh is not None else group or dist.group.WORLD)
    legal = model.groups.dp.ranks
    if set(ranks) <= set(legal):
        return
    remedy = (
        "pass process_group=engine.groups.dp.group, or leave it out: engine.backward averages over these ranks"
        if len(legal) > 1
        else "leave it out: there is one data-parallel rank, so nothing is averaged"
    )
    raise EngineError(
        f"DistributedDataParallel over ranks {ranks}: it would give all of them the parameters of rank {ranks[0]}, and "
        f"this model is sharded over ranks {list(model.groups.tp.ranks)}, each with a part of its own; its "
        f"data-parallel ranks are {list(legal)}: {remedy}"
    )


def _refuse(name: str) -> _Check:
    def refuse(model: ShardedTensors, _: dict[str, Any]) -> None:
        raise EngineError(
            f"{name}: this model is sharded over the TP group {list(model.groups.tp.ranks)}, and {name} would replace "
            "or copy the parameters that the plan and the engine's optimizer hold; leave it out: engine.backward "
            "averages over the data-parallel ranks, as torch.nn.parallel.DistributedDataParallel(engine.module, "
            "process_group=engine.groups.dp.group) does in a loop by hand, and zero_optimization in the config shards "
            "the optimizer's state"
        )

    return refuse
