"""Whole tensors for an update whose elements depend on others (Muon, Adafactor, LAMB): gathered before, sliced after.

So the update is that of the unsharded model. Each rank then holds whole weights and gradients for the time of an
update, and whole optimizer states: the price of these optimizers is the memory of an unsharded model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from tpinit.runtime.groups.buckets import in_buckets
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.slicing import assemble, local_part
from tpinit.runtime.training.param_state import ParamState

__all__ = ["gather_whole", "keep_slices"]


@torch.no_grad()
def gather_whole(states: Sequence[ParamState], tp: GroupView) -> list[nn.Parameter]:
    """Return the whole weight of each sharded parameter, with its whole gradient, in the target's dtype and device.

    One all-gather for each dtype and each bucket of weights and gradients. A parameter without a gradient on every
    rank has none; where only some ranks have one, the others count as zero.
    """
    whole: dict[int, nn.Parameter] = {}

    def sent_elements(state: ParamState) -> int:
        return 2 * max(_local_size(state, tp.size, rank) for rank in range(tp.size))

    for bucket in in_buckets(_by_dtype(states), sent_elements, lambda state: state.target.dtype):
        for state, parameter in zip(bucket, _gather_bucket(bucket, tp), strict=True):
            whole[id(state)] = parameter
    return [whole[id(state)] for state in states]


def _by_dtype(states: Sequence[ParamState]) -> list[ParamState]:
    dtypes = list(dict.fromkeys(state.target.dtype for state in states))
    return sorted(states, key=lambda state: dtypes.index(state.target.dtype))


def _local_size(state: ParamState, tp_size: int, rank: int) -> int:
    return math.prod(state.record.local_shape(tp_size, rank))


def _gather_bucket(states: Sequence[ParamState], tp: GroupView) -> list[nn.Parameter]:
    """All-gather flags (does this rank have a gradient), weights and gradients in one tensor; return the whole ones."""
    sizes = [[_local_size(state, tp.size, rank) for state in states] for rank in range(tp.size)]
    first = states[0].target
    sent = torch.zeros(len(states) + 2 * max(map(sum, sizes)), dtype=first.dtype, device=first.device)
    sent[: len(states)] = torch.tensor([state.target.grad is not None for state in states], dtype=first.dtype)
    for state, part, grad in zip(states, *_split(sent, len(states), sizes[tp.position]), strict=True):
        part.copy_(state.target.detach().reshape(-1))
        if state.target.grad is not None:
            grad.copy_(state.target.grad.reshape(-1))
    received = [torch.empty_like(sent) for _ in range(tp.size)]
    collective("all_gather", "weights and gradients for the optimizer", received, sent, group=tp.group)
    used = torch.stack([flat[: len(states)] for flat in received]).any(0).tolist()
    pieces = [_split(flat, len(states), sizes[rank]) for rank, flat in enumerate(received)]
    found = []
    for index, state in enumerate(states):
        shapes = [state.record.local_shape(tp.size, rank) for rank in range(tp.size)]
        weight, grad = (
            assemble([pieces[rank][which][index].view(shapes[rank]) for rank in range(tp.size)], state.record)
            for which in (0, 1)
        )
        parameter = nn.Parameter(weight)
        parameter.grad = grad if used[index] else None
        found.append(parameter)
    return found


def _split(flat: torch.Tensor, flags: int, sizes: Sequence[int]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return views of the weights and of the gradients that one rank sent after its flags."""
    total = sum(sizes)
    weights, grads = flat[flags : flags + total], flat[flags + total : flags + 2 * total]
    return list(torch.split(weights, list(sizes))), list(torch.split(grads, list(sizes)))


@torch.no_grad()
def keep_slices(states: Sequence[ParamState], whole: Sequence[nn.Parameter], tp: GroupView) -> None:
    """Copy this rank's slice of each updated whole weight to the state's target."""
    for state, parameter in zip(states, whole, strict=True):
        state.target.copy_(local_part(parameter, state.record, tp.size, tp.position))
