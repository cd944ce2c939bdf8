"""ZeRO's stages 1 and 2: each data-parallel rank updates its own parameters, and sends them to the others.

An optimizer then has state on one rank for each parameter, so that the states of a model take 1 / ranks of the memory.
Each update is that of one rank. With stage 1 gradients are averaged on all ranks, and weights are equal to stage 0 to
the bit; with stage 2 each mean goes to the rank that updates its parameter (`gradient_buckets`).
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer
from tpinit.runtime.groups.buckets import in_buckets
from tpinit.runtime.groups.gradient_owners import GradientOwners
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.training.gradients import any_rank
from tpinit.runtime.training.master_copies import MASTER
from tpinit.runtime.training.param_state import ParamState

__all__ = ["complete_states", "owners_of", "share_updates"]

_log = logging.getLogger("tpinit")
_SHARED: weakref.WeakKeyDictionary[Optimizer, _Shares] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class _Described:
    """A tensor of an optimizer's state without its values. `on_cpu`: it is not on its parameter's device."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    on_cpu: bool

    def empty(self, device: torch.device) -> torch.Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device="cpu" if self.on_cpu else device)


def _described(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return _Described(tuple(value.shape), value.dtype, value.device.type == "cpu")


def share_updates(optimizer: Optimizer, states: Sequence[ParamState], dp: GroupView) -> None:
    """Let every `step` of the optimizer update this rank's share of the parameters, and receive the others'.

    The update of one parameter must not depend on another parameter. All ranks of the data-parallel group must call
    `step` alike: it issues an all-reduce of one flag for each parameter, and a broadcast for each rank of the group,
    each dtype and each bucket. Does nothing for a group of one rank.
    """
    if dp.group is None:
        return
    shares = _Shares(states, dp)
    optimizer.register_step_pre_hook(shares.begin)
    optimizer.register_step_post_hook(shares.end)
    optimizer.register_state_dict_pre_hook(shares.warn)
    _SHARED[optimizer] = shares


def owners_of(optimizer: Optimizer | None) -> GradientOwners | None:
    """Return which rank updates which parameter, of an optimizer whose updates are shared; None for another."""
    shares = _SHARED.get(optimizer) if optimizer is not None else None
    return shares.who if shares is not None else None


@contextmanager
def complete_states(optimizer: Optimizer | None) -> Iterator[None]:
    """Give every rank the optimizer's states of all parameters while the block runs, and the memory back after it.

    All ranks must enter it together: the owners send their states. Does nothing if the states are not sharded.
    """
    shares = _SHARED.get(optimizer) if optimizer is not None else None
    if optimizer is None or shares is None:
        yield
        return
    shares.gather(optimizer)
    try:
        yield
    finally:
        shares.drop(optimizer)


class _Shares:
    """The updates of one optimizer: each rank makes those of its own parameters."""

    def __init__(self, states: Sequence[ParamState], dp: GroupView) -> None:
        self._states = states
        self._dp = dp
        sizes = [math.prod(state.record.shape) for state in states]
        self.who = GradientOwners(sizes, dp.size, dp.position)
        self._held: set[int] = set()  # parameters in the optimizer's groups
        self._groups: list[list[Any]] = []
        self._warned = False

    def begin(self, optimizer: Optimizer, *_: Any) -> None:
        """Leave this rank's parameters in the optimizer's groups."""
        self._groups = [group["params"] for group in optimizer.param_groups]
        held = {id(parameter) for parameters in self._groups for parameter in parameters}
        self._held = {index for index, state in enumerate(self._states) if id(state.target) in held}
        self.who.assign(self._held)
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
        updated = self._updated_anywhere()
        for owner in range(self._dp.size):
            for bucket in self._buckets(owner, updated):
                self._send(bucket, self._dp.ranks[owner])

    def _updated_anywhere(self) -> list[bool]:
        """Return which parameters their owners have updated: those that had a gradient there.

        A rank can't tell by its own gradients, or by what it has frozen.
        """
        mine = [
            index in self._held and self.who.is_mine(index) and state.target.grad is not None
            for index, state in enumerate(self._states)
        ]
        return any_rank(mine, self._dp)

    def warn(self, _: Optimizer) -> None:
        """Say once that a state dict has this rank's states only."""
        if not self._warned:
            self._warned = True
            _log.warning(
                "optimizer.state_dict() has the states of this rank's share of the parameters only "
                "(zero_optimization): call engine.save_checkpoint(folder) on every rank to save all"
            )

    @torch.no_grad()
    def gather(self, optimizer: Optimizer) -> None:
        """Receive the states of the other ranks' parameters; the master copies are on every rank already."""
        for index, owner in self.who.owners.items():
            parameter, mine = self._states[index].parameter, owner == self._dp.position
            entry = {key: value for key, value in optimizer.state.get(parameter, {}).items() if key != MASTER}
            sent = [{key: _described(value) for key, value in entry.items()} if mine else None]
            source = self._dp.ranks[owner]
            collective("broadcast_object_list", "the kinds of optimizer states", sent, src=source, group=self._dp.group)
            for key, described in (sent[0] or {}).items():
                value = described
                if isinstance(described, _Described):
                    value = entry[key] if mine else described.empty(parameter.device)
                    self._broadcast(value, source, parameter.device)
                if not mine:
                    optimizer.state[parameter][key] = value

    def drop(self, optimizer: Optimizer) -> None:
        """Forget the states of the other ranks' parameters."""
        for _, state in self._owned(others=True):
            entry = optimizer.state.pop(state.parameter, {})
            if MASTER in entry:
                optimizer.state[state.parameter] = {MASTER: entry[MASTER]}

    def _broadcast(self, value: torch.Tensor, source: int, device: torch.device) -> None:
        """Broadcast a state, in place; one that an optimizer keeps on the CPU goes over the parameter's device."""
        flat = value.detach().to(device).contiguous()
        collective("broadcast", "an optimizer state", flat, src=source, group=self._dp.group)
        value.copy_(flat)

    def _owned(self, others: bool) -> Iterator[tuple[int, ParamState]]:
        """Yield (owner, state) of this rank's parameters, or of all others'."""
        for index, owner in self.who.owners.items():
            if (owner != self._dp.position) is others:
                yield owner, self._states[index]

    def _buckets(self, owner: int, updated: Sequence[bool]) -> Iterator[list[torch.Tensor]]:
        """Yield the parameters that a rank has updated in buckets, dtype by dtype."""
        owned = [index for index, rank in self.who.owners.items() if rank == owner and updated[index]]
        targets = [self._states[index].target for index in owned]
        dtypes = list(dict.fromkeys(target.dtype for target in targets))
        targets.sort(key=lambda target: dtypes.index(target.dtype))
        return in_buckets(targets, torch.Tensor.numel, lambda target: target.dtype)

    @torch.no_grad()
    def _send(self, targets: Sequence[torch.Tensor], owner: int) -> None:
        flat = torch.cat([target.detach().reshape(-1) for target in targets])
        collective("broadcast", "updated parameters", flat, src=owner, group=self._dp.group)
        if owner == self._dp.ranks[self._dp.position]:
            return
        for target, values in zip(targets, torch.split(flat, [target.numel() for target in targets]), strict=True):
            target.copy_(values.view_as(target))
