"""The parallel layers: the user's own modules, with another forward and a slice of each parameter.

A layer is turned by giving the very module object a class derived from its own, so the module tree, the
qualified names, the hooks, `isinstance` and every Parameter object stay the user's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.nn import functional
from tpinit.runtime.parallel.collectives import (
    Ranks,
    TPRegionInput,
    gather_from_tp_region,
    reduce_from_tp_region,
    scatter_to_tp_region,
)
from tpinit.runtime.parallel.fused_columns import FusedColumnGroup
from tpinit.runtime.parallel.rng import RngTracker
from tpinit.runtime.parallel.sequence import scatter_tokens

__all__ = ["ColumnParallelLinear", "VocabParallelHead", "RowParallelLinear", "fuse_columns", "convert_module"]


@dataclass(frozen=True, slots=True)
class GroupHandle:
    """The group that a layer belongs to. A copied layer belongs to the same one: a group itself can't be copied."""

    group: ProcessGroup

    def __deepcopy__(self, _: dict[int, Any]) -> GroupHandle:
        """Return the same one."""
        return self


class ColumnParallelLinear:
    """A matrix that holds some of its output features, and of its bias [out / n].

    Its input is whole. `tp_fused` multiplies it, together with those that read the same input, and collects the
    gradient of that; `tp_region_input` collects it where others than matrices read it too; both are None where another
    layer collects. `tp_ranks` is set where the output shall be whole too; `tp_rng` where what follows draws
    random numbers.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    training: bool
    tp_group_handle: GroupHandle
    tp_fused: FusedColumnGroup | None
    tp_region_input: TPRegionInput | None
    tp_ranks: Ranks
    tp_rng: RngTracker | None

    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., in] to [..., out / n], or to [..., out]."""
        output = _columns(self, input)
        if self.tp_rng is not None and self.training:
            self.tp_rng.enter(input)
        return gather_from_tp_region(output, self.tp_group_handle.group, self.tp_ranks) if self.tp_ranks else output


class RowParallelLinear:
    """A matrix that holds some of its input features, and the whole bias [out], added once, after the sum.

    Its input is this rank's part of the features, or the whole of them where `tp_ranks` is set. Its output is this
    rank's part of the tokens where `tp_scatter` is set.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    training: bool
    tp_group_handle: GroupHandle
    tp_ranks: Ranks
    tp_scatter: bool
    tp_rng: RngTracker | None

    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., in / n] to [..., out]: one all-reduce, or one reduce-scatter."""
        if self.tp_rng is not None and self.training:
            self.tp_rng.leave(input)
        hidden = scatter_to_tp_region(input, self.tp_group_handle.group, self.tp_ranks) if self.tp_ranks else input
        partial = functional.linear(hidden, _as_linear(self))
        together = scatter_tokens if self.tp_scatter else reduce_from_tp_region
        output = together(partial, self.tp_group_handle.group)
        return output if self.bias is None else output + self.bias


class VocabParallelHead(ColumnParallelLinear):
    """The output head, cut by vocabulary. Its logits are whole, but while the loss is computed from its part.

    `keep_local_logits` says so for the forward that is running: see `loss`.
    """

    keep_local_logits: bool

    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., hidden] to the logits [..., vocabulary], or to this rank's part of them."""
        output = _columns(self, input)
        return (
            output
            if self.keep_local_logits
            else gather_from_tp_region(output, self.tp_group_handle.group, self.tp_ranks)
        )


def _columns(layer: ColumnParallelLinear, input: torch.Tensor) -> torch.Tensor:
    """Multiply the whole input [..., in] by this rank's part of the matrix."""
    if layer.tp_fused is not None and layer.tp_fused.applies_to(input):
        return layer.tp_fused(layer, input)
    hidden = layer.tp_region_input(input) if layer.tp_region_input is not None else input
    return functional.linear(hidden, _as_linear(layer), layer.bias)


def _as_linear(layer: ColumnParallelLinear | RowParallelLinear) -> torch.Tensor:
    # GPT-2's Conv1D holds [in, out], every other matrix [out, in].
    return layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()


_CONVERTED: dict[tuple[type, type], type] = {}


def convert_module(
    module: nn.Module,
    kind: type,
    group: ProcessGroup,
    entry: TPRegionInput | None = None,
    ranks: Ranks = (),
    streams: RngTracker | None = None,
    scatter: bool = False,
) -> None:
    """Turn a matrix, whose parameters are already cut, into a layer of this kind."""
    own = type(module)
    if (own, kind) not in _CONVERTED:
        _CONVERTED[own, kind] = type(f"{kind.__name__}Of{own.__name__}", (kind, own), {"__module__": __name__})
    module.__class__ = _CONVERTED[own, kind]
    own_state: dict[str, Any] = {"tp_group_handle": GroupHandle(group), "tp_ranks": ranks, "tp_rng": streams}
    if kind is RowParallelLinear:
        own_state["tp_scatter"] = scatter
    else:
        own_state["tp_region_input"] = entry
        own_state["tp_fused"] = None
    if kind is VocabParallelHead:
        own_state["keep_local_logits"] = False
    module.__dict__.update(own_state)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif hasattr(module, "nf"):
        module.__dict__.update(zip(("nx", "nf"), weight.shape, strict=True))


def fuse_columns(modules: Sequence[nn.Module], group: ProcessGroup) -> None:
    """Let layers that are turned, and that alone read one tensor, go into the group together."""
    fused_with = FusedColumnGroup(group, modules)
    for module in modules:
        module.__dict__["tp_fused"] = fused_with
