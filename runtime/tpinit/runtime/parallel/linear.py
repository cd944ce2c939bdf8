"""The parallel linear layers: the user's own modules with another forward and a shard of each parameter.

`convert_module` gives a module object a class derived from its own class, so the module tree, the qualified names, the
hooks, `isinstance` and every Parameter object stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup
from torch.nn import functional
from tpinit.runtime.internals.torch_private import parameters_of, set_class
from tpinit.runtime.parallel.collectives import (
    BoundRegion,
    RankPieces,
    RegionFunction,
    TPRegionInput,
    copy_to_tp_region,
)
from tpinit.runtime.parallel.enclosed import check_enclosed
from tpinit.runtime.parallel.fused_columns import FusedColumnGroup
from tpinit.runtime.parallel.guarded import guarded_attributes
from tpinit.runtime.parallel.layer_kinds import LayerKind, layer_regions
from tpinit.runtime.parallel.rng import RngTracker
from tpinit.runtime.parallel.tally import counted

__all__ = [
    "LINEAR_CLASSES",
    "ColumnParallelLinear",
    "RowParallelLinear",
    "VocabParallelHead",
    "convert_module",
    "fuse_columns",
]

AppliedRegion = Callable[[torch.Tensor], torch.Tensor]


class ColumnParallelLinear:
    """A linear with sharded output features: weight [out / ranks, in], bias [out / ranks].

    `tp_region_input` is applied to the input, which is replicated; None if another layer sums the input's gradient.
    `tp_fused` replaces it where sibling linears alone read the input. `tp_region_output` is applied to the output; None
    keeps it sharded. With `tp_rng`, random numbers after this layer come from the rank's own RNG state.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    training: bool
    tp_fused: FusedColumnGroup | None
    tp_region_input: AppliedRegion | None
    tp_region_output: AppliedRegion | None
    tp_rng: RngTracker | None

    @counted
    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., in] to [..., out / ranks], or to [..., out] with a gathered output.

        Raises EngineError if the output is a part, and nothing runs whose output is whole.
        """
        check_enclosed(self)
        output = _column_output(self, input)
        if self.tp_rng is not None and self.training:
            self.tp_rng.enter(input)
        return _apply(self.tp_region_output, output)


class RowParallelLinear:
    """A linear with sharded input features: weight [out, in / ranks], and the whole bias [out], added after the sum.

    `tp_region_input` slices a replicated input; None if the input is sharded already. `tp_region_output` sums the
    partial results, by an all-reduce or by a reduce-scatter over the tokens. With `tp_rng`, random numbers after this
    layer come from the RNG state that the ranks share.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    training: bool
    tp_region_input: AppliedRegion | None
    tp_region_output: AppliedRegion | None
    tp_rng: RngTracker | None

    @counted
    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., in / ranks], or [..., in] with a sliced input, to [..., out].

        Raises EngineError if the input is a part, and nothing runs whose output is whole.
        """
        check_enclosed(self)
        if self.tp_rng is not None and self.training:
            self.tp_rng.leave(input)
        partial = functional.linear(_apply(self.tp_region_input, input), _weight(self))
        output = _apply(self.tp_region_output, partial)
        bias = _parameter(self, "bias")
        return output if bias is None else output + bias


class VocabParallelHead(ColumnParallelLinear):
    """The output head, sharded by vocabulary. Its logits are gathered unless `keep_local_logits` is set.

    `loss` sets `keep_local_logits` during a forward that computes the loss from the sharded logits, and never where
    `always_gathers` is set.
    """

    keep_local_logits: bool
    always_gathers: bool

    @counted
    def forward(self, input: torch.Tensor, *_: Any) -> torch.Tensor:
        """Map [..., hidden] to the logits [..., vocabulary], or to this rank's [..., vocabulary / ranks]."""
        check_enclosed(self)
        output = _column_output(self, input)
        return output if self.keep_local_logits else _apply(self.tp_region_output, output)


def _column_output(layer: ColumnParallelLinear, input: torch.Tensor) -> torch.Tensor:
    """Map the replicated input [..., in] to this rank's output features [..., out / ranks]."""
    if layer.tp_fused is not None and layer.tp_fused.applies_to(input):
        return layer.tp_fused(layer, input)
    return functional.linear(_apply(layer.tp_region_input, input), _weight(layer), _parameter(layer, "bias"))


def _apply(region: AppliedRegion | None, tensor: torch.Tensor) -> torch.Tensor:
    return tensor if region is None else region(tensor)


def _weight(layer: ColumnParallelLinear | RowParallelLinear) -> torch.Tensor:
    """Return the weight as [out, in]: GPT-2's Conv1D stores [in, out]."""
    weight = _parameter(layer, "weight")
    assert weight is not None
    return weight if isinstance(layer, nn.Linear) else weight.t()


def _parameter(layer: Any, name: str) -> torch.Tensor | None:
    """Return a parameter of a layer, which `guarded` hides from everything but the layer's own forward."""
    return parameters_of(layer).get(name)


LINEAR_CLASSES: Mapping[LayerKind, type] = {
    LayerKind.COLUMN: ColumnParallelLinear,
    LayerKind.COLUMN_GATHER: ColumnParallelLinear,
    LayerKind.HEAD: VocabParallelHead,
    LayerKind.ROW: RowParallelLinear,
    LayerKind.ROW_SPLIT: RowParallelLinear,
}
"""The class that `convert_module` gives to a linear of each kind."""

_DERIVED: dict[tuple[type, type], type] = {}


def convert_module(
    module: nn.Module,
    kind: LayerKind,
    group: ProcessGroup,
    region_input: TPRegionInput | None = None,
    pieces: RankPieces = (),
    rng: RngTracker | None = None,
    scatter_output: bool = False,
) -> None:
    """Make a linear, whose parameters are already sharded, the parallel layer of this kind.

    `region_input`: the copy of the input that the model's layers share; None if another layer sums the gradient of the
    input. `pieces`: the (offset, length) pieces of each rank, for the kinds that gather or slice features.
    `scatter_output`: the output of a row-parallel linear is reduce-scattered over the tokens.
    """
    parallel = LINEAR_CLASSES[kind]
    original = type(module)
    if (original, parallel) not in _DERIVED:
        name = f"{parallel.__name__}Of{original.__name__}"
        _DERIVED[original, parallel] = type(
            name, (parallel, original), {"__module__": __name__, **guarded_attributes(("weight", "bias"))}
        )
    set_class(module, _DERIVED[original, parallel])
    regions = layer_regions(kind, reduce_input_grad=region_input is not None, scatter_output=scatter_output)

    def bound(region: RegionFunction | None) -> AppliedRegion | None:
        return None if region is None else BoundRegion(region, group, pieces)

    shares_input = region_input is not None and region_input.region is regions.input
    module.__dict__.update(
        tp_region_input=region_input if shares_input else bound(regions.input),
        tp_region_output=bound(regions.output),
        tp_rng=rng,
    )
    if issubclass(parallel, ColumnParallelLinear):
        module.__dict__["tp_fused"] = None
    if parallel is VocabParallelHead:
        module.__dict__.update(keep_local_logits=False, always_gathers=False)
    _set_sizes(module)


def _set_sizes(module: nn.Module) -> None:
    """Set the feature counts that nn.Linear and Conv1D show to those of the shard."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    elif hasattr(module, "nf"):
        module.__dict__.update(zip(("nx", "nf"), weight.shape, strict=True))


def fuse_columns(modules: Sequence[nn.Module], group: ProcessGroup) -> None:
    """Fuse converted column-parallel linears that read one tensor, which no other module reads."""
    for module in modules:
        region_input = module.tp_region_input
        # The fused operation replaces a copy to the TP region, and nothing else.
        assert isinstance(region_input, TPRegionInput)
        assert region_input.region is copy_to_tp_region
    fused = FusedColumnGroup(group, modules)
    for module in modules:
        module.__dict__["tp_fused"] = fused
