"""Carry out a plan on a model: cut the data of each parameter, turn the layers, open the regions.

Every Parameter object survives with its name, its `requires_grad`, its ties and its hooks: only its data is
replaced. So optimizers built over the whole parameters go on to hold the right ones.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed import ProcessGroup
from tpinit.runtime.layers import enter_region, make_column, make_row
from tpinit.runtime.plan.records import ParameterPlan, Plan

__all__ = ["carry_out", "local_part"]


def local_part(whole: torch.Tensor, record: ParameterPlan, tp_size: int, tp_rank: int) -> torch.Tensor:
    """Return this rank's slice of a whole tensor: a view, or the tensor itself where nothing is cut."""
    held = record.slice_of(tp_size, tp_rank)
    if held is None or record.dim is None:
        return whole
    return whole.narrow(record.dim, *held)


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
        enter_region(model.get_submodule(region.module), region.argument, group)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear)
    return module
