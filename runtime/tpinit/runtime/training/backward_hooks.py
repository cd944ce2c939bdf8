"""The gradients of a plain `loss.backward()`: hooks make them those of the whole model, so that any code may use them.

Behind a backward each rank holds its slice of the whole model's gradient: of a parameter of which each rank of a TP
group computes one addend, the sum, and over the data-parallel group the mean. So reading, clipping by value, replacing
and stepping mean what they mean unsharded. `engine.backward` does without the hooks: it sums and averages in buckets,
once for all of its micro batches.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.groups.process_groups import GroupView, ParallelGroups
from tpinit.runtime.internals.torch_private import after_backward, backward_number
from tpinit.runtime.planning.schema import GradientRule
from tpinit.runtime.settings import Averaging
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.gradient_buckets import GradientBuckets
from tpinit.runtime.training.gradients import GradientNorm, full_size, global_norm, sum_partial
from tpinit.runtime.training.param_state import ParamState

__all__ = ["BackwardHooks"]


class BackwardHooks:
    """The hooks on the parameters of one model, and what the engine does in their place.

    `addends`: the gradients are those of the engine's micro batches so far, not yet reduced over the ranks. `buckets`
    average them over the data-parallel group, as `averaging` says.
    """

    def __init__(
        self, states: Sequence[ParamState], groups: ParallelGroups, device: torch.device, averaging: Averaging
    ) -> None:
        self.addends = False
        self.averaging = averaging
        self._states = list(states)
        self._partial = [state for state in self._states if state.record.gradient_rule is GradientRule.PARTIAL]
        if groups.tp.group is None:
            self._partial = []
        self.groups = groups
        self.buckets = GradientBuckets(states, groups.dp, device, averaging, self._partial)
        self._cut = [state for state in self._states if state.record.dim is not None]
        if groups.tp.group is None:
            self._cut = []
        self._device = device
        self._adds_replicas = False  # the last `reduce` summed over the data-parallel group
        self._on_owners = False  # the gradients are means, each on the rank that owns its parameter (ZeRO 2)
        self._paused = False
        self._averages_after = -1  # the number of the backward that averages when it ends
        for state in self._partial:
            _on_trainable(state, partial(self._sum, state), "register_hook")
        if groups.dp.group is not None:
            # Python can't see that torch holds these hooks, so they must not hold the parameters: a model that nobody
            # uses would never be freed. The first parameter holds `self` in a way that Python sees.
            weak = weakref.ref(self)
            for index, state in enumerate(self._states):
                _on_trainable(state, partial(_accumulated, weak, index), "register_post_accumulate_grad_hook")
            for state in self._states[:1]:
                _on_trainable(state, partial(_hold, self), "register_hook")

    @contextmanager
    def paused(self, sends: bool) -> Iterator[None]:
        """Run a backward of the engine: its gradients stay addends of this rank until `reduce`.

        `sends`: `reduce` follows, and buckets are sent while the backward runs. A gradient that is a sum over the ranks
        already is divided by their number, so that `reduce` sums it to itself. The mean over the data-parallel group of
        equal means is that mean; of sums, each rank keeps its share. Raises EngineError if an earlier backward failed
        after it had sent gradients.
        """
        if self.buckets.failed:
            raise EngineError(
                "a backward failed before, and a part of its gradients was sent to other ranks already: call "
                "engine.zero_grad() on every rank, and start this update again"
            )
        self.unmark()
        for state in self._states:
            state.take_grad()
        if self.buckets.owners is not None and sends and not self.addends:
            self.buckets.keep_means()
        elif self._adds_replicas and not self.addends:
            for state in self._states:
                if state.target.grad is not None:
                    state.target.grad.div_(self.groups.dp.size)
        for state in self._partial:
            if state.summed and state.target.grad is not None:
                state.target.grad.div_(self.groups.tp.size)
            state.summed = False
        self._paused = True
        self.addends = True
        if sends:
            self.buckets.begin()
        try:
            yield
        except BaseException:
            self.buckets.abandon()
            self.show()
            raise
        finally:
            self._paused = False
        for state in self._states:
            state.accumulate()

    def reduce(self, flag: torch.Tensor) -> torch.Tensor:
        """Sum the addends over the TP group, average over the data-parallel group; return whether a rank's flag is set.

        `flag` is a bool scalar.
        """
        for state in self._partial:
            if state.parameter.grad is not None:  # else `accumulate` has added it to the master copy's
                state.take_grad()
        sum_partial(self._partial, self.groups.tp, self._device)
        for state in self._partial:
            state.summed = True
        self.addends = False
        self._adds_replicas = not self.averaging.mean
        self._on_owners = self.owns_gradients()
        return self.buckets.finish(flag)

    def norm(self, bad_loss: torch.Tensor | None = None, losses: Sequence[torch.Tensor] = ()) -> GradientNorm:
        """Start the 2-norm of the whole model's gradient: see `global_norm`."""
        return global_norm(self.counted(), self.groups.tp, self._device, bad_loss, losses, self.owned_in())

    def counted(self) -> list[ParamState]:
        """Return the states whose gradients this rank adds to a norm over the model: those that it owns (ZeRO 2)."""
        owners = self.buckets.owners
        return [state for index, state in enumerate(self._states) if owners is None or owners.is_mine(index)]

    def owns_gradients(self) -> bool:
        """Return whether this rank keeps only the gradients of the parameters that it owns (ZeRO 2)."""
        return self.buckets.owners is not None

    def owned_in(self) -> GroupView | None:
        """Return the data-parallel group if each of its ranks has the gradients that it owns (ZeRO 2); else None."""
        return self.groups.dp if self.buckets.owners is not None else None

    def drop(self) -> None:
        """Forget the addends of this update."""
        self.addends = self.buckets.failed = self._on_owners = False

    def show(self) -> None:
        """Let every parameter show the gradient of its master copy; those of sharded ones are marked as parts."""
        for state in self._states:
            state.show_grad()
        self.mark()

    def mark(self) -> None:
        """Let the gradients of sharded parameters refuse what would take a part for the whole (`GradientPart`)."""
        if not self._paused:
            for state in self._cut:
                state.mark_grad()

    def unmark(self) -> None:
        """Let the gradients of sharded parameters be plain tensors, for the runtime itself and for optimizers."""
        for state in self._cut:
            state.unmark_grad()

    @contextmanager
    def unmarked(self) -> Iterator[None]:
        """Let the gradients be plain tensors inside the context."""
        self.unmark()
        try:
            yield
        finally:
            self.mark()

    def _sum(self, state: ParamState, grad: torch.Tensor) -> torch.Tensor | None:
        """Return the sum over the TP group of the gradient that each rank has computed, this rank's slice of it."""
        if self._paused:
            return None
        tp, record = self.groups.tp, state.record
        state.summed = not self.addends
        with torch.no_grad():
            total = full_size(grad, record, tp)
            collective("all_reduce", f"the gradient of {record.name}", total, group=tp.group)
            if self.addends:
                total /= tp.size
            return local_part(total, record, tp.size, tp.position).contiguous()

    def accumulated(self, index: int) -> None:
        """In a backward of the engine, send what is complete; else average all gradients when the backward ends."""
        if self._paused:
            self.buckets.accumulated(index)
            return
        if self._on_owners:
            raise EngineError(
                "loss.backward() after engine.backward(loss) with ZeRO 2: the gradients of before are on one rank "
                "each; call engine.backward(loss) again, or engine.zero_grad() before a backward of your own"
            )
        number = backward_number()
        if number != self._averages_after:
            self._averages_after = number
            after_backward(self._average)

    def _average(self) -> None:
        with torch.no_grad():
            self.unmark()
            for state in self._states:
                state.take_grad()
            self.buckets.average_all(torch.zeros((), dtype=torch.bool, device=self._device))
            self.show()


def _accumulated(hooks: weakref.ref[BackwardHooks], index: int, _: torch.Tensor) -> None:
    present = hooks()
    if present is not None:
        present.accumulated(index)


def _hold(_: BackwardHooks, __: torch.Tensor) -> None:
    """Keep the hooks of a model alive as long as its parameters: a hook that changes nothing."""


def _on_trainable(state: ParamState, hook: object, register: str) -> None:
    """Register a hook on a parameter; torch puts none on a frozen one, which may be trained later."""
    trainable = state.parameter.requires_grad
    state.parameter.requires_grad_(True)
    getattr(state.parameter, register)(hook)
    state.parameter.requires_grad_(trainable)
