"""ZeRO's stages 1 and 2: each data-parallel rank updates its own parameters, and sends them to the others.

An optimizer then has state on one rank for each parameter, so that the states of a model take 1 / ranks of the memory.
Gradients are averaged on all ranks, and each update is that of one rank: weights are equal to stage 0 to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.training.param_state import ParamState

__all__ = ["share_updates"]

_BUCKET = 1 << 25  # elements in one broadcast


def share_updates(optimizer: Optimizer, states: Sequence[ParamState], dp: GroupView) -> None:
    """Let every `step` of the optimizer update this rank's share of the parameters, and receive the others'.

    The update of one parameter must not depend on another parameter. All ranks of the data-parallel group must call
    `step` alike: it issues a broadcast for each rank of the group, each dtype and each `_BUCKET` elements. Does nothing
    for a group of one rank.
    """
    if dp.group is None:
        return
    shares = _Shares(states, dp)
    optimizer.register_step_pre_hook(shares.begin)
    optimizer.register_step_post_hook(shares.end)


class _Shares:
    """Which rank updates which parameter: the one with the fewest elements so far, in the order of the plan."""

    def __init__(self, states: Sequence[ParamState], dp: GroupView) -> None:
        self._states = states
        self._dp = dp
        self._owners: dict[int, int] = {}
        self._elements = [0] * dp.size
        self._groups: list[list[Any]] = []

    def begin(self, optimizer: Optimizer, *_: Any) -> None:
        """Leave this rank's parameters in the optimizer's groups."""
        self._groups = [group["params"] for group in optimizer.param_groups]
        held = {id(parameter) for parameters in self._groups for parameter in parameters}
        for index, state in enumerate(self._states):
            if index not in self._owners and id(state.target) in held:
                owner = min(range(self._dp.size), key=self._elements.__getitem__)
                self._owners[index] = owner
                self._elements[owner] += state.target.numel()
        foreign = {id(state.target) for _, state in self._owned(others=True)}
        for group, parameters in zip(optimizer.param_groups, self._groups, strict=True):
            for parameter in parameters:
                if id(parameter) in foreign:
                    optimizer.state.pop(parameter, None)  # loaded from a checkpoint of every rank's state
            group["params"] = [parameter for parameter in parameters if id(parameter) not in foreign]

    def end(self, optimizer: Optimizer, *_: Any) -> None:
        """Put the parameters back in the groups, and send each rank's updated ones to the others."""
        for group, parameters in zip(optimizer.param_groups, self._groups, strict=True):
            group["params"] = parameters
        self._groups = []
        for owner in range(self._dp.size):
            for bucket in self._buckets(owner):
                self._send(bucket, self._dp.ranks[owner])

    def _owned(self, others: bool) -> Iterator[tuple[int, ParamState]]:
        """Yield (owner, state) of this rank's parameters, or of all others'."""
        for index, owner in self._owners.items():
            if (owner != self._dp.position) is others:
                yield owner, self._states[index]

    def _buckets(self, owner: int) -> Iterator[list[torch.Tensor]]:
        """Yield the parameters of a rank in lists of one dtype and at most `_BUCKET` elements, or of one parameter."""
        targets = [self._states[index].target for index, rank in self._owners.items() if rank == owner]
        targets = [target for target in targets if target.requires_grad]
        for dtype in dict.fromkeys(target.dtype for target in targets):
            bucket: list[torch.Tensor] = []
            count = 0
            for target in (one for one in targets if one.dtype == dtype):
                if bucket and count + target.numel() > _BUCKET:
                    yield bucket
                    bucket, count = [], 0
                bucket.append(target)
                count += target.numel()
            yield bucket

    @torch.no_grad()
    def _send(self, targets: Sequence[torch.Tensor], owner: int) -> None:
        flat = torch.cat([target.detach().reshape(-1) for target in targets])
        dist.broadcast(flat, src=owner, group=self._dp.group)
        if owner == self._dp.ranks[self._dp.position]:
            return
        for target, values in zip(targets, torch.split(flat, [target.numel() for target in targets]), strict=True):
            target.copy_(values.view_as(target))
