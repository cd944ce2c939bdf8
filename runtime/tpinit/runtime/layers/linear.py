"""The parallel linear layers: the user's own modules, with another forward and a slice of each parameter.

A layer is turned by giving the very module object another class, so the module tree, the qualified names,
the hooks and every Parameter object stay the user's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.nn import functional
from tpinit.runtime.layers.collectives import copy_to_group, sum_over_group

__all__ = ["ColumnLinear", "RowLinear", "enter_region", "make_column", "make_row"]


class ColumnLinear(nn.Linear):
    """A linear layer that holds some rows of the weight [out / n, in] and of the bias [out / n].

    Its input is whole and its output is this rank's part of the features. The all-reduce of its input's
    gradient belongs to the region that it is in (`enter_region`), so that siblings share it.
    """


class RowLinear(nn.Linear):
    """A linear layer that holds some columns of the weight [out, in / n] and the whole bias [out].

    Its input is this rank's part of the features; its output is summed over the group, and the bias is
    added once, after the sum.
    """

    tp_group: ProcessGroup

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Map [..., in / n] to [..., out]: one all-reduce."""
        output = sum_over_group(functional.linear(input, self.weight), self.tp_group)
        return output if self.bias is None else output + self.bias


def make_column(linear: nn.Linear) -> None:
    """Turn a plain linear, whose parameters are already cut, into a column layer."""
    linear.__class__ = ColumnLinear
    linear.out_features = linear.weight.shape[0]


def make_row(linear: nn.Linear, group: ProcessGroup) -> None:
    """Turn a plain linear, whose weight is already cut, into a row layer of the group."""
    linear.__class__ = RowLinear
    assert isinstance(linear, RowLinear)
    linear.in_features = linear.weight.shape[1]
    linear.tp_group = group


def enter_region(block: nn.Module, argument: str, group: ProcessGroup) -> None:
    """Make `block` copy its input to the group: siblings inside that read it share one backward all-reduce.

    `argument` is the name of the input, which may also come as the first positional argument. The copy is
    made afresh in each call, so nothing is kept alive and activation checkpointing re-runs it rightly.
    """
    block.register_forward_pre_hook(_entry(argument, group), with_kwargs=True)


def _entry(
    argument: str, group: ProcessGroup
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if argument in kwargs:
            return args, {**kwargs, argument: copy_to_group(kwargs[argument], group)}
        return (copy_to_group(args[0], group), *args[1:]), kwargs

    return enter
