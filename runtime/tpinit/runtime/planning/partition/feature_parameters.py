"""Parameters with one element for each sharded feature: scales, gates and IA3's vectors between the sharded layers.

Such a parameter is no layer's: the block multiplies or adds it to features of which a rank has some, so the rank holds
the same part of the parameter. The dry run decides whether that is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.partition.regions import BlockPatch, FeatureParameter, Region
from tpinit.runtime.planning.partition.shard_maps import Placement, RegionSharding, ShardMap, per_head_shard_map
from tpinit.runtime.planning.schema import Cut

__all__ = ["block_placements", "feature_parameters"]


def feature_parameters(
    model: nn.Module, region: Region, linears: Mapping[str, LinearInfo], trace: Trace
) -> tuple[FeatureParameter, ...]:
    """Return the parameters inside the block of a region that may have one element for each of its features.

    Such a parameter has one dimension, but for dimensions of size 1; meets the outputs of column-parallel layers of
    the region, and reaches nothing but its row-parallel layers. Another parameter of the same `nn.ParameterDict` and
    shape that the forward does not use (that of an adapter which is not active) goes with it.
    """
    block, prefix = model.get_submodule(region.block), f"{region.block}." if region.block else ""
    layers = {id(parameter) for linear in linears.values() for parameter in linear.module.parameters()}
    candidates = [(path, one) for path, one in block.named_parameters() if id(one) not in layers and _is_vector(one)]
    found: dict[str, FeatureParameter] = {}
    for path, parameter in candidates:
        reaching = trace.reach_parameter.get(prefix + path, set())
        columns = sorted(reaching.intersection(region.columns))
        if columns and trace.parameter_readers.get(prefix + path, set()) <= set(region.rows):
            column = next((name for name in columns if linears[name].out_features == parameter.numel()), None)
            if column is not None or linears[region.rows[0]].in_features == parameter.numel():
                found[path] = FeatureParameter(path, column.removeprefix(prefix) if column else "")
    for path, parameter in candidates:
        owner = path.rpartition(".")[0]
        if path in found or prefix + path in trace.reach_parameter:
            continue
        if isinstance(block.get_submodule(owner), nn.ParameterDict):
            beside = [one for other, one in found.items() if other.rpartition(".")[0] == owner]
            shapes = {one: block.get_parameter(one.path).shape for one in beside}
            twin = next((one for one in beside if shapes[one] == parameter.shape), None)
            if twin is not None:
                found[path] = FeatureParameter(path, twin.column)
    return tuple(found.values())


def _is_vector(parameter: nn.Parameter) -> bool:
    """Return whether all dimensions but one have the size 1."""
    return parameter.numel() > 1 and max(parameter.shape) == parameter.numel()


def block_placements(
    block: nn.Module, region: Region, sharding: RegionSharding, patch: BlockPatch, tp_size: int
) -> Iterator[tuple[str, Placement]]:
    """Yield the path below the block, and the placement, of each parameter that is sharded with heads or features."""
    for path in patch.head_parameters:
        assert sharding.heads is not None
        shard_map = per_head_shard_map(block.get_parameter(path).shape[0], sharding.heads, tp_size)
        yield path, Placement(Cut.COLUMN, 0, shard_map)
    for parameter in patch.feature_parameters:
        shape = block.get_parameter(parameter.path).shape
        yield parameter.path, Placement(Cut.COLUMN, shape.index(max(shape)), _features(region, sharding, parameter))


def _features(region: Region, sharding: RegionSharding, parameter: FeatureParameter) -> ShardMap:
    if not parameter.column:
        return sharding.row
    return sharding.columns[f"{region.block}.{parameter.column}" if region.block else parameter.column]
