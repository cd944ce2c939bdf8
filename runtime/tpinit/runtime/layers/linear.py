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
from tpinit.runtime.layers.collectives import Entry, Ranks, gather_over_group, split_over_group, sum_over_group
from tpinit.runtime.layers.doors import Door
from tpinit.runtime.layers.sequence import scatter_tokens
from tpinit.runtime.layers.streams import Streams

__all__ = ["ColumnLayer", "HeadLayer", "RowLayer", "open_door", "turn"]


@dataclass(frozen=True, slots=True)
class Home:
    """The group that a layer belongs to. A copied layer belongs to the same one: a group itself can't be copied."""

    group: ProcessGroup

    def __deepcopy__(self, _: dict[int, Any]) -> Home:
        """Return the same one."""
        return self


class ColumnLayer:
    """A matrix that holds some of its output features, and of its bias [out / n].

    Its input is whole. `tp_door` multiplies it, together with those that read the same input, and collects the
    gradient of that; `tp_entry` collects it where others than matrices read it too; both are None where another
    layer collects. `tp_ranks` is set where the output shall be whole too; `tp_streams` where what follows draws
    random numbers.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    training: bool
    tp_home: Home
    tp_door: Door | None
    tp_entry: Entry | None
    tp_ranks: Ranks
    tp_streams: Streams | None

    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., in] to [..., out / n], or to [..., out]."""
        output = _columns(self, input)
        if self.tp_streams is not None and self.training:
            self.tp_streams.enter(input)
        return gather_over_group(output, self.tp_home.group, self.tp_ranks) if self.tp_ranks else output


class RowLayer:
    """A matrix that holds some of its input features, and the whole bias [out], added once, after the sum.

    Its input is this rank's part of the features, or the whole of them where `tp_ranks` is set. Its output is this
    rank's part of the tokens where `tp_scatter` is set.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    training: bool
    tp_home: Home
    tp_ranks: Ranks
    tp_scatter: bool
    tp_streams: Streams | None

    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., in / n] to [..., out]: one all-reduce, or one reduce-scatter."""
        if self.tp_streams is not None and self.training:
            self.tp_streams.leave(input)
        hidden = split_over_group(input, self.tp_home.group, self.tp_ranks) if self.tp_ranks else input
        partial = functional.linear(hidden, _as_linear(self))
        together = scatter_tokens if self.tp_scatter else sum_over_group
        output = together(partial, self.tp_home.group)
        return output if self.bias is None else output + self.bias


class HeadLayer(ColumnLayer):
    """The output head, cut by vocabulary. Its logits are whole, but while the loss is computed from its part.

    `tp_part` says so for the forward that is running: see `loss`.
    """

    tp_part: bool

    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., hidden] to the logits [..., vocabulary], or to this rank's part of them."""
        output = _columns(self, input)
        return output if self.tp_part else gather_over_group(output, self.tp_home.group, self.tp_ranks)


def _columns(layer: ColumnLayer, input: torch.Tensor) -> torch.Tensor:
    """Multiply the whole input [..., in] by this rank's part of the matrix."""
    if layer.tp_door is not None and layer.tp_door.opens_for(input):
        return layer.tp_door(layer, input)
    hidden = layer.tp_entry(input) if layer.tp_entry is not None else input
    return functional.linear(hidden, _as_linear(layer), layer.bias)


def _as_linear(layer: ColumnLayer | RowLayer) -> torch.Tensor:
    # GPT-2's Conv1D holds [in, out], every other matrix [out, in].
    return layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()


_TURNED: dict[tuple[type, type], type] = {}


def turn(
    module: nn.Module,
    kind: type,
    group: ProcessGroup,
    entry: Entry | None = None,
    ranks: Ranks = (),
    streams: Streams | None = None,
    scatter: bool = False,
) -> None:
    """Turn a matrix, whose parameters are already cut, into a layer of this kind."""
    own = type(module)
    if (own, kind) not in _TURNED:
        _TURNED[own, kind] = type(f"{kind.__name__}Of{own.__name__}", (kind, own), {"__module__": __name__})
    module.__class__ = _TURNED[own, kind]
    own_state: dict[str, Any] = {"tp_home": Home(group), "tp_ranks": ranks, "tp_streams": streams}
    if kind is RowLayer:
        own_state["tp_scatter"] = scatter
    else:
        own_state["tp_entry"] = entry
        own_state["tp_door"] = None
    if kind is HeadLayer:
        own_state["tp_part"] = False
    module.__dict__.update(own_state)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif hasattr(module, "nf"):
        module.__dict__.update(zip(("nx", "nf"), weight.shape, strict=True))


def open_door(modules: Sequence[nn.Module], group: ProcessGroup) -> None:
    """Let layers that are turned, and that alone read one tensor, go into the group together."""
    door = Door(group, modules)
    for module in modules:
        module.__dict__["tp_door"] = door
