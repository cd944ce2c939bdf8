"""Gradients over the data-parallel group, in buckets that are sent while the backward runs.

A bucket is sent when the backward has accumulated its last gradient, and the buckets before it are sent. Which
parameters are in buckets is what all ranks saw in the flags of the last update, and never what one rank sees: so ranks
that use or freeze other parameters send the same tensors. What is in no bucket, or comes after its bucket was sent (a
tied weight under reentrant checkpointing), is sent when the backward has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from tpinit.runtime.groups.buckets import fill_buckets, send_order
from tpinit.runtime.groups.gradient_owners import GradientOwners
from tpinit.runtime.groups.issuing import PendingCollective, collective
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.settings import TORCH_DTYPES, Averaging
from tpinit.runtime.training.gradients import greatest
from tpinit.runtime.training.param_state import ParamState

__all__ = ["GradientBuckets"]

_ABSENT, _SENT, _UNSENT = 0, 1, 2  # what a rank has of a parameter's gradient when the backward has ended


@dataclass(slots=True)
class _Bucket:
    """Parameters, by index, whose gradients are sent at once. `owner` gets the mean; None: every rank does.

    `waiting` are those whose gradients the backward has not accumulated; `sent` is what is in the collective `work`.
    """

    indices: list[int]
    owner: int | None
    waiting: set[int] = field(default_factory=set)
    sent: torch.Tensor | None = None
    work: PendingCollective | None = None


class GradientBuckets:
    """Replaces the gradients of one model by their means over the data-parallel group, as `averaging` says.

    `partial` are those that the ranks of a TP group sum before, when the backward has ended. `owners`: each mean goes
    to the owner of its parameter only, and the other ranks keep none (ZeRO 2); None: to all. `failed`: a backward
    raised after a part of its gradients was sent, or set aside.
    """

    def __init__(
        self,
        states: Sequence[ParamState],
        dp: GroupView,
        device: torch.device,
        averaging: Averaging,
        partial: Sequence[ParamState] = (),
    ) -> None:
        self.owners: GradientOwners | None = None
        self.failed = False
        self._states = list(states)
        self._dp = dp
        self._device = device
        self._averaging = averaging
        summed_first = {id(state) for state in partial}
        self._last = {index for index, state in enumerate(states) if id(state) in summed_first}
        self._live: list[int] = []  # parameters that had a gradient on any rank in the last update
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[int, _Bucket] = {}
        self._next = 0  # the first bucket that is not sent
        self._had: set[int] = set()  # parameters of which this rank has sent a gradient
        self._kept: dict[int, torch.Tensor] = {}  # means of earlier backwards, which are not sent again
        self._running = False

    def begin(self) -> None:
        """Prepare the buckets for a backward that sends gradients."""
        if self._dp.group is None:
            return
        self._buckets = self._fill(send_order(self._live, self._last), self.owners)
        self._bucket_of = {index: bucket for bucket in self._buckets for index in bucket.indices}
        for bucket in self._buckets:
            bucket.waiting = set(bucket.indices)
        self._running = self._averaging.overlap

    def keep_means(self) -> None:
        """Set the gradients aside that are means already: of parameters with an owner, on it; elsewhere drop them."""
        assert self.owners is not None
        for index, state in enumerate(self._states):
            if index in self.owners.owners and state.target.grad is not None:
                grad = state.release_grad()
                if self.owners.is_mine(index) and grad is not None:
                    self._kept[index] = grad

    def accumulated(self, index: int) -> None:
        """Note that the backward has accumulated a gradient; send what was complete before.

        So the other hooks of this parameter still see its gradient.
        """
        if not self._running:
            return
        while self._next < len(self._buckets) and not self._buckets[self._next].waiting:
            self._send(self._buckets[self._next], self._averaging)
            self._next += 1
        if index in self._bucket_of and index not in self._last:
            self._bucket_of[index].waiting.discard(index)

    def abandon(self) -> None:
        """Forget what a backward has sent that raised. The ranks may not all have sent it, so none waits for it."""
        self.failed = self.failed or self._next > 0 or bool(self._kept)
        self._forget()

    def finish(self, flag: torch.Tensor) -> torch.Tensor:
        """Send what is left, and put the means in the place of the gradients; return whether a flag is set on any rank.

        A parameter that has a gradient on some ranks counts as zero on the others. One that has a gradient on no rank
        keeps none. `flag` is a bool scalar.
        """
        if self._dp.group is None:
            return flag
        self._running = False
        for bucket in self._buckets[self._next :]:
            self._send(bucket, self._averaging)
        flag = self._finish(flag, self._averaging, self.owners)
        self._forget()
        return flag

    def average_all(self, flag: torch.Tensor) -> torch.Tensor:
        """Put the plain means in the place of all gradients, on every rank: for a backward outside of the engine."""
        return flag if self._dp.group is None else self._finish(flag, Averaging(), None)

    def _finish(self, flag: torch.Tensor, averaging: Averaging, owners: GradientOwners | None) -> torch.Tensor:
        marks, flag = self._agree([self._mark(index) for index in range(len(self._states))], flag)
        live = [index for index, mark in enumerate(marks) if mark != _ABSENT]
        if self.owners is not None:
            self.owners.assign(live)
        late = [index for index in live if marks[index] == _UNSENT]
        rest = self._fill(send_order(late, ()), owners)
        means: dict[int, torch.Tensor] = {}
        for bucket in rest:
            self._send(bucket, averaging)
        for bucket in (*self._buckets, *rest):
            self._receive(bucket, averaging, live, means)
        for index, kept in self._kept.items():
            means[index] = means[index] + kept if index in means else kept
        for index, mean in means.items():
            self._states[index].target.grad = mean
        self._last.update(index for index in late if index in self._bucket_of)
        self._live = live
        return flag

    def _mark(self, index: int) -> int:
        state = self._states[index]
        if state.parameter.grad is not None or state.target.grad is not None:
            return _UNSENT
        return _SENT if index in self._had else _ABSENT

    def _agree(self, marks: list[int], flag: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        """Return the greatest mark of each parameter over the group, and whether a bool scalar is set on any rank.

        A mark on an accelerator would be read only when the whole backward is done: there they go over host memory.
        """
        if self._device.type != "cpu":
            anywhere = flag.to(torch.int32)
            collective(
                "all_reduce", "losses that are NaN or infinite", anywhere, op=dist.ReduceOp.MAX, group=self._dp.group
            )
            return greatest(marks, self._dp), anywhere.bool()
        both = torch.cat([torch.tensor(marks, dtype=torch.int32), flag.to(torch.int32).reshape(1)])
        collective("all_reduce", "which gradients there are", both, op=dist.ReduceOp.MAX, group=self._dp.group)
        return both[:-1].tolist(), both[-1].bool()

    def _fill(self, indices: Iterable[int], owners: GradientOwners | None) -> list[_Bucket]:
        """Return buckets of parameters of one dtype and, where means go to owners, of one owner."""

        def owner_of(index: int) -> int | None:
            return owners.owners[index] if owners is not None else None

        groups = fill_buckets(
            indices,
            lambda index: self._states[index].target.numel(),
            lambda index: (self._states[index].target.dtype, owner_of(index)),
            self._averaging.bucket,
        )
        return [_Bucket(group, owner_of(group[0])) for group in groups]

    @torch.no_grad()
    def _send(self, bucket: _Bucket, averaging: Averaging) -> None:
        """Start the collective of a bucket, in DeepSpeed's order of operations; the parameters have no gradients then.

        A gradient that is accumulated later is another one, and is not in the bucket.
        """
        parts = []
        for index in bucket.indices:
            target, grad = self._states[index].target, self._states[index].release_grad()
            if grad is not None:
                self._had.add(index)
            parts.append(torch.zeros_like(target) if grad is None else grad)
        flat = torch.cat([part.reshape(-1) for part in parts])
        sent = bucket.sent = flat if averaging.dtype is None else flat.to(TORCH_DTYPES[averaging.dtype])
        before = averaging.divisor_before(self._dp.size)
        if before != 1:
            sent *= 1 / before
        name, options = "the mean of gradients", {"group": self._dp.group, "async_op": True}
        if bucket.owner is None:
            bucket.work = collective("all_reduce", name, sent, **options)
        else:
            bucket.work = collective("reduce", name, sent, dst=self._dp.ranks[bucket.owner], **options)

    @torch.no_grad()
    def _receive(
        self, bucket: _Bucket, averaging: Averaging, live: Sequence[int], means: dict[int, torch.Tensor]
    ) -> None:
        """Wait for a bucket, and add its means to `means`."""
        assert bucket.sent is not None
        if bucket.work is not None:
            bucket.work.wait()
        if bucket.owner not in (None, self._dp.position):
            return
        after = averaging.divisor_after(self._dp.size)
        if after != 1:
            bucket.sent /= after
        targets = [self._states[index].target for index in bucket.indices]
        flat = bucket.sent.to(targets[0].dtype)
        pieces = torch.split(flat, [target.numel() for target in targets])
        wanted = set(live)
        for index, target, piece in zip(bucket.indices, targets, pieces, strict=True):
            if index in wanted:
                mean = piece.view_as(target)
                if not target.is_contiguous():
                    mean = torch.empty_like(target).copy_(mean)
                means[index] = means[index] + mean if index in means else mean

    def _forget(self) -> None:
        self._buckets, self._bucket_of, self._next = [], {}, 0
        self._had, self._kept, self._running = set(), {}, False
