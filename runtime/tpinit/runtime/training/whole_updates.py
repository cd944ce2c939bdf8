"""Updates of whole tensors: for optimizers whose update of one element depends on others (Muon, Adafactor, LAMB).

Before each `step` of the optimizer, the ranks of a TP group gather the weights and gradients of all sharded parameters,
put whole tensors in the optimizer's groups, and keep their own parts of the updated ones. So the update is that
of the unsharded model. Each rank then holds whole weights, gradients and optimizer states of what is sharded: the price
of these optimizers is the memory of an unsharded model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.slicing import assemble, local_part
from tpinit.runtime.training.optimizer_trial import substituted
from tpinit.runtime.training.param_state import ParamState

__all__ = ["update_whole_tensors"]


def update_whole_tensors(optimizer: Optimizer, states: Sequence[ParamState], tp: GroupView) -> None:
    """Let every `step` of the optimizer update whole tensors. Every rank of the TP group must then call `step` alike.

    Each `step` issues one all-gather for each dtype of the sharded parameters that the optimizer holds. Does nothing
    for a group of one rank.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    sharded = [state for state in states if state.record.dim is not None and id(state.target) in held]
    if tp.group is None or not sharded:
        return
    update = _WholeUpdate(sharded, tp)
    optimizer.register_step_pre_hook(update.begin)
    optimizer.register_step_post_hook(update.end)


class _WholeUpdate:
    """One update: `begin` before the optimizer's step, `end` after it."""

    def __init__(self, states: Sequence[ParamState], tp: GroupView) -> None:
        self._states = states
        self._tp = tp
        self._open = ExitStack()
        self._wholes: list[tuple[ParamState, nn.Parameter]] = []

    def begin(self, optimizer: Optimizer, *_: Any) -> None:
        """Gather weights and gradients, and put whole tensors in the optimizer's groups."""
        self._open.close()  # a step that raised left them there
        self._wholes.clear()
        for dtype in dict.fromkeys(state.target.dtype for state in self._states):
            self._wholes += self._gather([state for state in self._states if state.target.dtype == dtype])
        self._open.enter_context(substituted(optimizer, {id(state.target): whole for state, whole in self._wholes}))

    def end(self, *_: Any) -> None:
        """Keep this rank's part of each updated tensor, and put the local parameters back."""
        with torch.no_grad():
            for state, whole in self._wholes:
                state.target.copy_(local_part(whole, state.record, self._tp.size, self._tp.position))
        self._wholes.clear()
        self._open.close()

    def _gather(self, states: Sequence[ParamState]) -> list[tuple[ParamState, nn.Parameter]]:
        """Return a whole parameter, with its gradient if a rank has one, for each state. They have one dtype."""
        with torch.no_grad():
            sizes = [
                [state.record.local_shape(self._tp.size, rank) for state in states] for rank in range(self._tp.size)
            ]
            counts = [2 * sum(map(math.prod, shapes)) + len(states) for shapes in sizes]
            own = states[0].target.new_zeros(max(counts))
            has_grad = own.new_tensor([float(state.target.grad is not None) for state in states])
            parts = [has_grad]
            for state in states:
                grad = state.target.grad
                gradient = grad if grad is not None else torch.zeros_like(state.target)
                parts += [state.target.reshape(-1), gradient.reshape(-1)]
            flat = torch.cat(parts)
            own[: flat.numel()] = flat
            gathered = [torch.empty_like(own) for _ in range(self._tp.size)]
            dist.all_gather(gathered, own, group=self._tp.group)
            return self._assembled(states, sizes, gathered)

    def _assembled(
        self, states: Sequence[ParamState], sizes: list[list[tuple[int, ...]]], gathered: list[torch.Tensor]
    ) -> list[tuple[ParamState, nn.Parameter]]:
        used = torch.stack([one[: len(states)] for one in gathered]).amax(dim=0).tolist()
        offsets = [len(states)] * self._tp.size
        wholes = []
        for index, state in enumerate(states):
            weights, grads = [], []
            for rank, flat in enumerate(gathered):
                shape = sizes[rank][index]
                begin, count = offsets[rank], math.prod(shape)
                weights.append(flat[begin : begin + count].view(shape))
                grads.append(flat[begin + count : begin + 2 * count].view(shape))
                offsets[rank] = begin + 2 * count
            whole = nn.Parameter(assemble(weights, state.record), requires_grad=state.target.requires_grad)
            whole.grad = assemble(grads, state.record) if used[index] else None
            wholes.append((state, whole))
        return wholes
