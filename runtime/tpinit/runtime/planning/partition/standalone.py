"""Matrices that are cut on their own, with whole features on both sides: gathered columns, split rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.partition.shard_maps import ShardMap
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest
from tpinit.runtime.planning.schema import LayerKind
from tpinit.runtime.shards import pieces

__all__ = ["StandaloneShard", "standalone_shards"]


@dataclass(frozen=True, slots=True)
class StandaloneShard:
    """One matrix that is cut on its own: what becomes of it, and how the cut dimension lies over the ranks."""

    name: str
    kind: LayerKind
    dim: int
    shard_map: ShardMap


def standalone_shards(
    model: nn.Module,
    matrices: Mapping[str, LinearInfo],
    request: PlanRequest | None,
    tp_size: int,
    taken: Collection[str],
) -> tuple[list[StandaloneShard], dict[str, str]]:
    """Return what of `request` is cut on its own, and by name why the rest of it is not. `taken` is cut already.

    The output of a column is gathered, the input of a row is split: exact wherever they stand, at the price of
    moving the features between the ranks. Of a matrix that is tied to another nothing is cut.
    """
    holders: dict[int, int] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders[id(parameter)] = holders.get(id(parameter), 0) + 1
    found, why = [], {}
    for name, style in (request.layers if request is not None else {}).items():
        if name in taken or name not in matrices or not style.standalone:
            continue
        matrix = matrices[name]
        parameters = [one for one in matrix.module._parameters.values() if one is not None]
        if any(holders[id(one)] > 1 for one in parameters):
            why[name] = "it is tied to another layer, which has no such cut"
            continue
        dim = matrix.out_dim if style.column else 1 - matrix.out_dim
        features = matrix.out_features if style.column else matrix.in_features
        spread = _spread(style, features, tp_size)
        if spread is None:
            why[name] = f"of its {features} features, not every one of {tp_size} ranks can have some"
            continue
        found.append(
            StandaloneShard(name, LayerKind.COLUMN_GATHER if style.column else LayerKind.ROW_SPLIT, dim, spread)
        )
    return found, why


def _spread(style: LayerRequest, features: int, tp_size: int) -> ShardMap | None:
    blocks = style.blocks or (features,)
    if any(length % style.unit or length // style.unit < tp_size for length in blocks):
        return None
    ranks = tuple(pieces(blocks, style.unit, tp_size, rank) for rank in range(tp_size))
    return ShardMap(ranks, style.unit, blocks if len(blocks) > 1 else ())
