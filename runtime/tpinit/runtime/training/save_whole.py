"""`save_pretrained` of a sharded model: the ranks send their parts to rank 0, one parameter at a time.

Rank 0 assembles each parameter in a file without a name, in the folder of the model, and hands transformers tensors
that are mapped from it. So a rank holds its part of the model and one parameter, and rank 0 also what transformers
copies to write one file.
"""

from __future__ import annotations

import inspect
import math
import mmap
import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups import protocol
from tpinit.runtime.groups.agreement import check_reports, gather_reports
from tpinit.runtime.groups.devices import peer_device
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.planning.schema import ParameterPlan, Plan
from tpinit.runtime.slicing import write_part
from tpinit.runtime.training.call_check import CallCheck
from tpinit.runtime.training.call_table import REFUSED
from tpinit.runtime.training.whole_model import records_below

__all__ = ["save_whole"]

_ALIGNMENT = 64  # bytes

Sharded = list[tuple[str, nn.Parameter, ParameterPlan]]


def save_whole(plan: Plan, tp: GroupView, check: CallCheck, first_replica: bool) -> Callable[..., Any]:
    """Return the guard of `save_pretrained`. `first_replica`: this TP group has the world's first batch, and saves."""

    def save(model: nn.Module, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        arguments = _arguments(model, save_directory, args, kwargs)
        check.compare_call("save_pretrained", model)
        sharded = _sharded(model, plan)
        writes = first_replica and tp.position == 0

        def prepare() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
            state = nn.Module.state_dict(model)  # raises for parameters that can't be saved
            return state, _map_file(save_directory, sharded) if writes else {}

        state, whole = _together(tp, prepare)
        if first_replica:
            for name, parameter, record in sharded:
                _collect(parameter.detach(), record, tp, whole.get(name))

        def write() -> None:
            if writes:
                complete = {**state, **_with_ties(model, sharded, whole)}
                type(model).save_pretrained(model, save_directory, state_dict=complete, **arguments)  # type: ignore[attr-defined]  # transformers' method

        _together(tp, write)

    return save


def _arguments(model: Any, save_directory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments behind the folder by name. Raises EngineError for those that a sharded model can't take."""
    bound = inspect.signature(type(model).save_pretrained).bind(model, save_directory, *args, **kwargs).arguments
    arguments = {name: value for name, value in list(bound.items())[2:] if name != "kwargs"}
    arguments.update(bound.get("kwargs", {}))
    if arguments.pop("push_to_hub", False):
        raise EngineError(f"save_pretrained(push_to_hub=True): {REFUSED['push_to_hub']}")
    if arguments.pop("state_dict", None) is not None:
        raise EngineError("save_pretrained(state_dict=...): leave it out; the whole state dict is gathered here")
    if arguments.pop("distributed_checkpoint", False):
        raise EngineError(
            "save_pretrained(distributed_checkpoint=True): transformers did not shard this model; leave it out, or "
            "give engine.module.state_dict() to torch.distributed.checkpoint"
        )
    arguments.pop("is_main_process", None)  # rank 0 writes
    return arguments


def _sharded(model: nn.Module, plan: Plan) -> Sharded:
    """Return the sharded parameters, each once, in the order of the model."""
    records = records_below(plan, "")
    return [
        (name, parameter, records[name])
        for name, parameter in model.named_parameters()
        if name in records and records[name].dim is not None
    ]


def _together(tp: GroupView, call: Callable[[], Any]) -> Any:
    """Return what `call` returns. If it fails on a rank, raise on all ranks of the TP group: none waits for it."""
    check = partial(check_reports, ranks=tp.ranks, title="save_pretrained failed")
    gather = partial(gather_reports, group=tp.control)
    result, _ = protocol.run(protocol.agree("save_pretrained", lambda _: call(), check, gather))
    return result


def _map_file(folder: Any, sharded: Sharded) -> dict[str, torch.Tensor]:
    """Return a tensor for each whole parameter, mapped from one file that vanishes with the last of them.

    The space is allocated here: a full disk is an OSError now, and not a signal later.
    """
    if os.path.isfile(folder):
        raise EngineError(f"save_pretrained: {folder} is a file; give a folder")
    os.makedirs(folder, exist_ok=True)
    sizes = [parameter.element_size() * math.prod(record.shape) for _, parameter, record in sharded]
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
    if not starts[-1]:
        return {}
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, starts[-1])
        memory = mmap.mmap(file.fileno(), starts[-1])
    found = {}
    for (name, parameter, record), start in zip(sharded, starts, strict=False):
        flat = torch.frombuffer(memory, dtype=parameter.dtype, count=math.prod(record.shape), offset=start)
        found[name] = flat.view(record.shape)
    return found


def _collect(part: torch.Tensor, record: ParameterPlan, tp: GroupView, whole: torch.Tensor | None) -> None:
    """Send this rank's part to the first rank of the TP group, which writes all parts to `whole`."""
    if tp.position:
        sent = part.contiguous().to(peer_device(tp.group, part.device))
        collective("send", f"the part of {record.name}", sent, tp.ranks[0], group=tp.group)
        return
    assert whole is not None
    write_part(whole, part, record, tp.size, 0)
    for position in range(1, tp.size):
        shape = record.local_shape(tp.size, position)
        received = part.new_empty(shape, device=peer_device(tp.group, part.device))
        collective("recv", f"the part of {record.name}", received, tp.ranks[position], group=tp.group)
        write_part(whole, received, record, tp.size, position)


def _with_ties(model: nn.Module, sharded: Sharded, whole: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the whole tensors by every name of their parameters."""
    first = {id(parameter): name for name, parameter, _ in sharded}
    return {
        name: whole[first[id(parameter)]]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in first
    }
