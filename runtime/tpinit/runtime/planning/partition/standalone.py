"""Linear layers that are sharded without a partner: a column layer gathers its output, a row layer slices its input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn
from tpinit.runtime.internals.torch_private import parameters_of
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.partition.shard_maps import ShardMap
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest
from tpinit.runtime.planning.schema import LayerKind
from tpinit.runtime.shards import pieces

__all__ = ["StandaloneShard", "standalone_shards"]


@dataclass(frozen=True, slots=True)
class StandaloneShard:
    """One linear layer that is sharded without a partner: its kind, and the dimension of the weight that is sharded."""

    name: str
    kind: LayerKind
    dim: int
    shard_map: ShardMap


def standalone_shards(
    model: nn.Module,
    linears: Mapping[str, LinearInfo],
    request: PlanRequest | None,
    tp_size: int,
    taken: Collection[str],
) -> tuple[list[StandaloneShard], dict[str, str]]:
    """Return the shards of the layers requested as standalone, and by name why a requested one can't be sharded.

    `taken` are the layers that are sharded already. A standalone layer is exact anywhere in the model, at the cost
    of moving its features between the ranks. A layer whose parameter is tied to another layer is refused.
    """
    holders = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in parameters_of(module).values()
        if parameter is not None
    )
    shards, reasons = [], {}
    for name, layer in (request.layers if request is not None else {}).items():
        if name in taken or name not in linears or not layer.standalone:
            continue
        linear = linears[name]
        parameters = [parameter for parameter in parameters_of(linear.module).values() if parameter is not None]
        if any(holders[id(parameter)] > 1 for parameter in parameters):
            reasons[name] = "its weight is tied to another layer, which would have to be sharded the same way"
            continue
        dim = linear.out_dim if layer.column else 1 - linear.out_dim
        features = linear.out_features if layer.column else linear.in_features
        shard_map = _shard_map(layer, features, tp_size)
        if shard_map is None:
            reasons[name] = f"not every one of {tp_size} ranks would hold some of its {features} features"
            continue
        kind = LayerKind.COLUMN_GATHER if layer.column else LayerKind.ROW_SPLIT
        shards.append(StandaloneShard(name, kind, dim, shard_map))
    return shards, reasons


def _shard_map(layer: LayerRequest, features: int, tp_size: int) -> ShardMap | None:
    """Return the shard map of each fused part, in whole units; None if a rank would hold nothing of a part."""
    sizes = layer.fused_sizes or (features,)
    if any(size % layer.unit or size // layer.unit < tp_size for size in sizes):
        return None
    slices = tuple(pieces(sizes, layer.unit, tp_size, rank) for rank in range(tp_size))
    return ShardMap(slices, layer.unit, sizes if len(sizes) > 1 else ())
