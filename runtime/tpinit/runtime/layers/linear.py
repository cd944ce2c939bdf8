"""The parallel layers: the user's own modules, with another forward and a slice of each parameter.

A layer is turned by giving the very module object a class derived from its own, so the module tree, the
qualified names, the hooks, `isinstance` and every Parameter object stay the user's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.nn import functional
from tpinit.runtime.layers.collectives import Entry, Ranks, gather_over_group, split_over_group, sum_over_group
from tpinit.runtime.layers.streams import Streams

__all__ = ["ColumnLayer", "HeadLayer", "RowLayer", "turn"]


class ColumnLayer:
    """A matrix that holds some of its output features, and of its bias [out / n].

    Its input is whole. `tp_entry` collects the gradient of the input, None where another layer does; `tp_ranks`
    is set where the output shall be whole too; `tp_streams` where what follows draws random numbers.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    training: bool
    tp_group: ProcessGroup
    tp_entry: Entry | None
    tp_ranks: Ranks
    tp_streams: Streams | None

    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., in] to [..., out / n], or to [..., out]."""
        hidden = self.tp_entry(input) if self.tp_entry is not None else input
        output = functional.linear(hidden, _as_linear(self), self.bias)
        if self.tp_streams is not None and self.training:
            self.tp_streams.enter(hidden)
        return gather_over_group(output, self.tp_group, self.tp_ranks) if self.tp_ranks else output


class RowLayer:
    """A matrix that holds some of its input features, and the whole bias [out], added once, after the sum.

    Its input is this rank's part of the features, or the whole of them where `tp_ranks` is set.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    training: bool
    tp_group: ProcessGroup
    tp_ranks: Ranks
    tp_streams: Streams | None

    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., in / n] to [..., out]: one all-reduce."""
        if self.tp_streams is not None and self.training:
            self.tp_streams.leave(input)
        hidden = split_over_group(input, self.tp_group, self.tp_ranks) if self.tp_ranks else input
        output = sum_over_group(functional.linear(hidden, _as_linear(self)), self.tp_group)
        return output if self.bias is None else output + self.bias


class HeadLayer(ColumnLayer):
    """The output head, cut by vocabulary. Its logits are whole, but while the loss is computed from its part.

    `tp_part` says so for the forward that is running: see `loss`.
    """

    tp_part: bool

    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., hidden] to the logits [..., vocabulary], or to this rank's part of them."""
        hidden = self.tp_entry(input) if self.tp_entry is not None else input
        output = functional.linear(hidden, self.weight, self.bias)
        return output if self.tp_part else gather_over_group(output, self.tp_group, self.tp_ranks)


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
) -> None:
    """Turn a matrix, whose parameters are already cut, into a layer of this kind."""
    own = type(module)
    if (own, kind) not in _TURNED:
        _TURNED[own, kind] = type(f"{kind.__name__}Of{own.__name__}", (kind, own), {"__module__": __name__})
    module.__class__ = _TURNED[own, kind]
    own_state: dict[str, Any] = {"tp_group": group, "tp_ranks": ranks, "tp_streams": streams}
    if kind is not RowLayer:
        own_state["tp_entry"] = entry
    if kind is HeadLayer:
        own_state["tp_part"] = False
    module.__dict__.update(own_state)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif hasattr(module, "nf"):
        module.__dict__.update(zip(("nx", "nf"), weight.shape, strict=True))
