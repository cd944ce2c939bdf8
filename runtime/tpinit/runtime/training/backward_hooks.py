"""The gradients of a plain `loss.backward()`: hooks make them those of the whole model, so that any code may use them.

Behind a backward each rank holds its slice of the whole model's gradient: of a parameter of which each rank of a TP
group computes one addend, the sum, and over the data-parallel group the mean. So reading, clipping by value, replacing
and stepping mean what they mean unsharded. `engine.backward` does without the hooks: it sums and averages in buckets,
once for all of its micro batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist
from tpinit.runtime.groups.process_groups import ParallelGroups
from tpinit.runtime.internals.torch_private import after_backward, backward_number
from tpinit.runtime.planning.schema import GradientRule
from tpinit.runtime.settings import Averaging
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.gradients import average, full_size, sum_partial
from tpinit.runtime.training.param_state import ParamState

__all__ = ["BackwardHooks"]


class BackwardHooks:
    """The hooks on the parameters of one model, and what the engine does in their place.

    `addends`: the gradients are those of the engine's micro batches so far, not yet reduced over the ranks.
    """

    def __init__(self, states: Sequence[ParamState], groups: ParallelGroups, device: torch.device) -> None:
        self.addends = False
        self._states = list(states)
        self._partial = [state for state in self._states if state.record.gradient_rule is GradientRule.PARTIAL]
        if groups.tp.group is None:
            self._partial = []
        self.groups = groups
        self._device = device
        self._adds_replicas = False  # the last `reduce` summed over the data-parallel group
        self._paused = False
        self._averages_after = -1  # the number of the backward that averages when it ends
        for state in self._partial:
            _on_trainable(state, partial(self._sum, state), "register_hook")
        if groups.dp.group is not None:
            for state in self._states:
                _on_trainable(state, self._average_later, "register_post_accumulate_grad_hook")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run a backward of the engine: its gradients stay addends of this rank until `reduce`.

        A gradient that is a sum over the ranks already is divided by their number, so that `reduce` sums it to itself.
        The mean over the data-parallel group of equal means is that mean; of sums, each rank keeps its share.
        """
        for state in self._states:
            state.take_grad()
        if self._adds_replicas and not self.addends:
            for state in self._states:
                if state.target.grad is not None:
                    state.target.grad.div_(self.groups.dp.size)
        for state in self._partial:
            if state.summed and state.target.grad is not None:
                state.target.grad.div_(self.groups.tp.size)
            state.summed = False
        self._paused = True
        self.addends = True
        try:
            yield
        except BaseException:
            self.show()
            raise
        finally:
            self._paused = False
        for state in self._states:
            state.accumulate()

    def reduce(self, flag: torch.Tensor, averaging: Averaging) -> torch.Tensor:
        """Sum the addends over the TP group, average over the data-parallel group; return whether a rank's flag is set.

        `flag` is a bool scalar; `averaging` says what the mean is.
        """
        for state in self._states if self.groups.dp.group is not None else self._partial:
            if state.parameter.grad is not None:  # else `accumulate` has added it to the master copy's
                state.take_grad()
        sum_partial(self._partial, self.groups.tp, self._device)
        for state in self._partial:
            state.summed = True
        self.addends = False
        self._adds_replicas = not averaging.mean
        return average(self._states, self.groups.dp, self._device, flag, averaging)

    def show(self) -> None:
        """Let every parameter show the gradient of its master copy."""
        for state in self._states:
            state.show_grad()

    def _sum(self, state: ParamState, grad: torch.Tensor) -> torch.Tensor | None:
        """Return the sum over the TP group of the gradient that each rank has computed, this rank's slice of it."""
        if self._paused:
            return None
        tp, record = self.groups.tp, state.record
        state.summed = not self.addends
        with torch.no_grad():
            total = full_size(grad, record, tp)
            dist.all_reduce(total, group=tp.group)
            if self.addends:
                total /= tp.size
            return local_part(total, record, tp.size, tp.position).contiguous()

    def _average_later(self, _: torch.Tensor) -> None:
        """Average all gradients when the running backward ends."""
        number = backward_number()
        if not self._paused and number != self._averages_after:
            self._averages_after = number
            after_backward(self._average)

    def _average(self) -> None:
        with torch.no_grad():
            for state in self._states:
                state.take_grad()
            average(self._states, self.groups.dp, self._device, torch.zeros((), dtype=torch.bool, device=self._device))
            self.show()


def _on_trainable(state: ParamState, hook: object, register: str) -> None:
    """Register a hook on a parameter; torch puts none on a frozen one, which may be trained later."""
    trainable = state.parameter.requires_grad
    state.parameter.requires_grad_(True)
    getattr(state.parameter, register)(hook)
    state.parameter.requires_grad_(trainable)
