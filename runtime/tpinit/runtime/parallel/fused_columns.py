"""The column matrices that read one tensor, as one operation: their gradients meet before one all-reduce.

And that all-reduce is hidden: while it runs, the gradients of the weights are computed, which need nothing of it.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.nn import functional

__all__ = ["FusedColumnGroup"]


class _FusedColumns(torch.autograd.Function):
    """Map hidden [..., in] to [..., out_i] for each matrix i. `tensors` are weight and bias of each, in turn."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, group: ProcessGroup, turned: Sequence[bool], *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)  # a sibling that nobody called has no gradient, and costs nothing
        ctx.group, ctx.turned = group, turned
        weights, biases = tensors[::2], tensors[1::2]
        ctx.save_for_backward(hidden, *weights)
        return tuple(
            functional.linear(hidden, weight.t() if turn else weight, bias)
            for weight, bias, turn in zip(weights, biases, turned, strict=True)
            if weight is not None
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        hidden, *weights = ctx.saved_tensors
        rows = hidden.reshape(-1, hidden.shape[-1])
        flat = [grad.reshape(-1, grad.shape[-1]) if grad is not None else None for grad in grads]
        total: torch.Tensor | None = None
        for grad, weight, turn in zip(flat, weights, ctx.turned, strict=True):
            if grad is not None:
                matrix = weight.t() if turn else weight
                total = grad @ matrix if total is None else total.addmm_(grad, matrix)
        assert total is not None  # autograd comes here with a gradient of something
        pending = dist.all_reduce(total, group=ctx.group, async_op=True)
        found: list[torch.Tensor | None] = []
        for place, (grad, turn) in enumerate(zip(flat, ctx.turned, strict=True)):
            wanted, also_bias = ctx.needs_input_grad[3 + 2 * place : 5 + 2 * place]
            weight_grad = None
            if grad is not None and wanted:
                weight_grad = rows.t() @ grad if turn else grad.t() @ rows
            found += [weight_grad, grad.sum(0) if grad is not None and also_bias else None]
        if pending is not None:
            pending.wait()
        return total.view(hidden.shape), None, None, *found


class FusedColumnGroup:
    """The way into the group for one tensor that several column matrices read, and nothing else does.

    The first that is called computes what all of them give; the others take theirs. What nobody takes is kept until
    the backward is done, or the next tensor comes. One that reads another tensor, or the same one changed, gets an
    operation of its own.
    """

    def __init__(self, group: ProcessGroup, layers: Sequence[nn.Module]) -> None:
        self.group = group
        self.layers = tuple(layers)
        self._hidden: weakref.ref[torch.Tensor] | None = None
        self._ready: dict[int, torch.Tensor] = {}
        self._version = 0

    @staticmethod
    def applies_to(hidden: torch.Tensor) -> bool:
        """Tell whether there is a gradient to collect, and the arithmetic is that of the tensors' own dtype."""
        return hidden.requires_grad and torch.is_grad_enabled() and not torch.is_autocast_enabled(hidden.device.type)

    def __call__(self, layer: Any, hidden: torch.Tensor) -> torch.Tensor:
        """Return what `layer`, one of the matrices, gives for `hidden` [..., in]: [..., out]."""
        same = self._hidden is not None and self._hidden() is hidden and self._version == hidden._version
        if same and id(layer) in self._ready:
            return self._ready.pop(id(layer))
        # Called out of turn, or again: alone, so that nothing is computed for siblings that are done.
        layers = (layer,) if same else self.layers
        tensors = [one for each in layers for one in (each.weight, each.bias)]
        turned = tuple(not isinstance(each, nn.Linear) for each in layers)
        outputs = _FusedColumns.apply(hidden, self.group, turned, *tensors)  # type: ignore[no-untyped-call]  # torch leaves apply() untyped
        if not same:
            self._hidden, self._version = weakref.ref(hidden, self._forget), hidden._version
            self._ready = {id(each): one for each, one in zip(layers, outputs, strict=True)}
            return self._ready.pop(id(layer))
        alone: torch.Tensor = outputs[0]
        return alone

    def _forget(self, gone: weakref.ref[torch.Tensor]) -> None:
        if self._hidden is gone:
            self._hidden, self._ready = None, {}

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedColumnGroup:
        """Return a fused_with to the same group for the copies of the matrices."""
        memo[id(self)] = twin = FusedColumnGroup(self.group, ())  # first, since the copies hold it
        twin.layers = tuple(copy.deepcopy(one, memo) for one in self.layers)
        return twin
