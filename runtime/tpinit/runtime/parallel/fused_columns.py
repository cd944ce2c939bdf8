"""Column-parallel linears that read one tensor, as one autograd operation with one all-reduce in the backward pass.

This is `copy_to_tp_region` fused with the linears behind it: the gradients of the input are summed locally, and while
the all-reduce of that sum runs, the gradients of the weights, which do not depend on it, are computed.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.nn import functional
from tpinit.runtime.groups.devices import autocast_dtype
from tpinit.runtime.internals.torch_private import parameters_of, version_of
from tpinit.runtime.parallel.collectives import CollectiveKind, copy_to_tp_region
from tpinit.runtime.parallel.first_order import first_order
from tpinit.runtime.parallel.full_graph import graph_break
from tpinit.runtime.parallel.tally import BACKWARD, current_place, issue

__all__ = ["FusedColumnGroup"]


class _FusedColumns(torch.autograd.Function):
    """Map hidden [..., in] to a tuple of [..., out_i], one for each linear.

    `tensors` are weight_0, bias_0, weight_1, bias_1, ...; `transposed[i]` says that weight_i is [in, out_i] (GPT-2's
    Conv1D) and not [out_i, in].
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, group: ProcessGroup, transposed: Sequence[bool], *tensors: torch.Tensor | None
    ) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)  # an output that was not used has no gradient, and costs nothing
        ctx.group, ctx.transposed, ctx.place = group, transposed, current_place()
        weights, biases = tensors[::2], tensors[1::2]
        ctx.save_for_backward(hidden, *weights)
        return tuple(
            functional.linear(hidden, weight.t() if is_transposed else weight, bias)
            for weight, bias, is_transposed in zip(weights, biases, transposed, strict=True)
            if weight is not None
        )

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[Any, ...]:
        hidden, *weights = ctx.saved_tensors
        flat_hidden = hidden.reshape(-1, hidden.shape[-1])
        flat_grads = [grad.reshape(-1, grad.shape[-1]) if grad is not None else None for grad in grads]
        hidden_grad = _hidden_grad(flat_grads, weights, ctx.transposed)
        pending = _sum_over_ranks(ctx, hidden_grad)
        weight_grads: list[torch.Tensor | None] = []
        for index, (grad, is_transposed) in enumerate(zip(flat_grads, ctx.transposed, strict=True)):
            needs_weight, needs_bias = ctx.needs_input_grad[3 + 2 * index : 5 + 2 * index]
            weight_grad = None
            if grad is not None and needs_weight:
                weight_grad = flat_hidden.t() @ grad if is_transposed else grad.t() @ flat_hidden
            weight_grads += [weight_grad, grad.sum(0) if grad is not None and needs_bias else None]
        if pending is not None:
            pending.wait()
        return hidden_grad.view(hidden.shape), None, None, *weight_grads


def _hidden_grad(
    grads: Sequence[torch.Tensor | None], weights: Sequence[torch.Tensor], transposed: Sequence[bool]
) -> torch.Tensor:
    """Return this rank's part of the gradient of the input, [rows, in], summed over the linears."""
    total: torch.Tensor | None = None
    for grad, weight, is_transposed in zip(grads, weights, transposed, strict=True):
        if grad is not None:
            matrix = weight.t() if is_transposed else weight
            total = grad @ matrix if total is None else total.addmm_(grad, matrix)
    assert total is not None  # autograd calls backward with the gradient of at least one output
    return total


def _sum_over_ranks(ctx: Any, hidden_grad: torch.Tensor) -> Any:
    with contextlib.nullcontext() if ctx.place is None else ctx.place.runs(BACKWARD):
        return issue("all_reduce", hidden_grad, group=ctx.group, async_op=True)


class FusedColumnGroup:
    """Column-parallel linears that read one tensor, which no other module reads.

    The first of them that is called computes the outputs of all; each of the others then returns its own. An output
    that no layer asked for is kept until the backward pass has run or the next input comes. A layer that is called
    with another tensor, with the same tensor after it was written to, or a second time, starts a new operation.
    """

    def __init__(self, group: ProcessGroup, layers: Sequence[nn.Module]) -> None:
        self.group = group
        self.layers = tuple(layers)
        self._input: weakref.ref[torch.Tensor] | None = None
        self._outputs: dict[int, torch.Tensor] = {}
        self._version = 0

    @staticmethod
    def applies_to(hidden: torch.Tensor) -> bool:
        """Return whether `hidden` gets a gradient and autocast, which would change the dtype, is off."""
        return hidden.requires_grad and torch.is_grad_enabled() and autocast_dtype(hidden.device.type) is None

    @graph_break
    def __call__(self, layer: Any, hidden: torch.Tensor) -> torch.Tensor:
        """Return the output [..., out / ranks] of `layer`, one of the group's layers, for `hidden` [..., in]."""
        place = current_place()
        if place is not None:
            place.apply(copy_to_tp_region)
        same_input = self._input is not None and self._input() is hidden and self._version == version_of(hidden)
        if same_input and id(layer) in self._outputs:
            return self._outputs.pop(id(layer))
        # Also for a second call of a layer with the same input: activation checkpointing recomputes so the first layer
        # of a region that begins with this group, and must find the same operation as in the forward.
        tensors = [tensor for sibling in self.layers for tensor in map(parameters_of(sibling).get, ("weight", "bias"))]
        transposed = tuple(not isinstance(sibling, nn.Linear) for sibling in self.layers)
        outputs = _FusedColumns.apply(hidden, self.group, transposed, *tensors)  # type: ignore[no-untyped-call]  # torch leaves apply() untyped
        if place is not None:
            place.watch(outputs[0], CollectiveKind.ALL_REDUCE.value)
        self._input, self._version = weakref.ref(hidden, self._forget), version_of(hidden)
        self._outputs = {id(sibling): output for sibling, output in zip(self.layers, outputs, strict=True)}
        return self._outputs.pop(id(layer))

    def _forget(self, freed: weakref.ref[torch.Tensor]) -> None:
        if self._input is freed:
            self._input, self._outputs = None, {}

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedColumnGroup:
        """Return a group of the copied layers in the same process group."""
        memo[id(self)] = twin = FusedColumnGroup(self.group, ())  # before the layers, whose copies refer to it
        twin.layers = tuple(copy.deepcopy(layer, memo) for layer in self.layers)
        return twin
