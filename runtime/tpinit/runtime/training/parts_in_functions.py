"""Functions of torch that would write to a part of a parameter or gradient as if each rank had all of it.

`torch.nn.init` would draw it, and compute from its shape. `torch.distributed.broadcast` and the reductions, over a
group that has other ranks of the TP group (the world is one), would replace it by another rank's part, or add other
parts to it: what scripts do to start from equal weights, and to average gradients or weights by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.issuing import is_issuing
from tpinit.runtime.planning.schema import ParameterPlan
from tpinit.runtime.training.gradient_parts import GradientPart
from tpinit.runtime.training.local_shards import plain
from tpinit.runtime.training.sharded_tensors import ShardedTensors, sharded_models

__all__ = ["refuse_collectives_of_parts", "refuse_draw"]

_MARK = "tp_original"
_WRITERS = ("all_reduce", "broadcast", "reduce")  # they replace what a rank has by what others have, or add it


def refuse_draw(tensor: torch.Tensor) -> None:
    """Raise EngineError if torch.nn.init is to draw a tensor that is this rank's part of a parameter."""
    found = _part_of(tensor)
    if found is not None:
        raise EngineError(
            f"torch.nn.init: {_described(tensor, found[1])}: what is drawn, and what is computed from its shape, would "
            "be that of the part. Draw weights before initialize, or inside GatheredParameters, which gives the whole"
        )


def refuse_collectives_of_parts() -> None:
    """Put our functions in the place of torch.distributed's, once for a process. Compiled code calls torch's."""
    for name in _WRITERS:
        original = getattr(dist, name)
        if not hasattr(original, _MARK):
            setattr(dist, name, _with_check(name, original))


def _with_check(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def checked(*args: Any, **kwargs: Any) -> Any:
        tensor = args[0] if args else kwargs.get("tensor")
        if not torch.compiler.is_compiling() and not is_issuing() and isinstance(tensor, torch.Tensor):
            place = {"all_reduce": 2, "broadcast": 2, "reduce": 3}[name]
            _check(name, tensor, args[place] if len(args) > place else kwargs.get("group"))
        return original(*args, **kwargs)

    setattr(checked, _MARK, original)
    return checked


def _check(name: str, tensor: torch.Tensor, group: Any) -> None:
    found = _part_of(tensor)
    if found is None:
        return
    model, record = found
    others = set(dist.get_process_group_ranks(group)) & set(model.groups.tp.ranks)
    if len(others) > 1:
        raise EngineError(
            f"torch.distributed.{name}: {_described(tensor, record)}: ranks {', '.join(map(str, sorted(others)))} of "
            "the group have other parts of it. Give the group engine.groups.dp.group, whose ranks have this part; "
            "initialize has compared the weights of all ranks, and a backward averages gradients over that group"
        )


def _part_of(tensor: torch.Tensor) -> tuple[ShardedTensors, ParameterPlan] | None:
    """Return the model and the record of which a tensor is this rank's part, as parameter, `.data` or gradient."""
    is_gradient, tensor = isinstance(tensor, GradientPart), plain(tensor)
    if not is_gradient and (type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.is_meta):
        return None
    for model in sharded_models():
        for state in model.states:
            record, own = state.record, state.parameter
            if record.dim is None or tuple(tensor.shape) != tuple(own.shape) or tuple(own.shape) == tuple(record.shape):
                continue
            if tensor.tp_record is record if is_gradient else _same_memory(tensor, own):  # type: ignore[attr-defined]  # it is a GradientPart
                return model, record
    return None


def _same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not other.is_meta and one.device == other.device and one.data_ptr() == other.data_ptr()


def _described(tensor: torch.Tensor, record: ParameterPlan) -> str:
    return f"{record.name} is sharded, and this rank has the part {list(tensor.shape)} of {list(record.shape)}"
