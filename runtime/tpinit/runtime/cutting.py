"""Carry out a plan on a model: cut the data of each parameter, turn the layers, open the regions.

Every Parameter object survives with its name, its `requires_grad`, its ties and its hooks: only its data is
replaced. So optimizers built over the whole parameters go on to hold the right ones.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed import ProcessGroup
from tpinit.runtime.layers import enter_region, make_column, make_row
from tpinit.runtime.plan.records import ParameterPlan, Plan

__all__ = ["carry_out", "local_part", "put_together"]


def local_part(whole: torch.Tensor, record: ParameterPlan, tp_size: int, tp_rank: int) -> torch.Tensor:
    """Return what this rank holds of a whole tensor: the tensor itself where nothing is cut, a view of one piece."""
    held = record.pieces_of(tp_size, tp_rank)
    if record.dim is None:
        return whole
    found = [whole.narrow(record.dim, offset, length) for offset, length in held]
    return found[0] if len(found) == 1 else torch.cat(found, dim=record.dim)


def put_together(parts: Sequence[torch.Tensor], record: ParameterPlan) -> torch.Tensor:
    """Return the whole tensor of what the ranks of a TP group hold of it, in order: the inverse of `local_part`."""
    if record.dim is None:
        return parts[0].clone()
    whole = parts[0].new_empty(record.shape)
    for tp_rank, part in enumerate(parts):
        begin = 0
        for offset, length in record.pieces_of(len(parts), tp_rank):
            whole.narrow(record.dim, offset, length).copy_(part.narrow(record.dim, begin, length))
            begin += length
    return whole


def carry_out(
    model: nn.Module, plan: Plan, group: ProcessGroup | None, dtype: torch.dtype | None, device: torch.device
) -> None:
    """Cut `model` in place by `plan`, cast its floating-point parameters to `dtype`, move it to `device`.

    `dtype` None keeps each parameter's own. Buffers keep theirs: a rotary table in half precision is
    another model. No collective is issued, and nothing here can be refused: the plan was checked before.
    """
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for record in plan.parameters:
            parameter = parameters[record.name]
            part = local_part(parameter.data, record, plan.tp_size, plan.tp_rank)
            if dtype is not None and parameter.is_floating_point():
                part = part.to(dtype)
            if record.dim is not None:
                # A slice of its own, so that the whole can be freed.
                part = part.clone(memory_format=torch.contiguous_format)
            parameter.data = part
    model.to(device)
    if group is None:
        return
    for region in plan.regions:
        for name in region.columns:
            make_column(_linear(model, name))
        make_row(_linear(model, region.row), group)
        block = model.get_submodule(region.module)
        _make_local(block, region.local)
        enter_region(block, region.argument, group)


def _make_local(block: nn.Module, local: tuple[tuple[str, int], ...]) -> None:
    """Tell a block how much of it is here. Where its config says so, it gets a config of its own."""
    for path, value in local:
        owner, _, name = path.rpartition(".")
        if owner:
            setattr(block, owner, copy.copy(getattr(block, owner)))
        setattr(getattr(block, owner) if owner else block, name, value)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module
