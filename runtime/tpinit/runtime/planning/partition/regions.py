"""Regions: groups of linear layers that are sharded together, found in the data flow of the model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.partition.shard_maps import RegionSharding
from tpinit.runtime.planning.schema import BlockPlan

__all__ = [
    "BlockPatch",
    "CutRegion",
    "FeatureParameter",
    "Region",
    "ShardMismatch",
    "block_plan",
    "candidate_regions",
    "common_block",
]


@dataclass(frozen=True, slots=True)
class Region:
    """Column layers, and the row layers that read what the column layers' outputs become, inside one block.

    `block` is the innermost module that contains them all. `shared_outputs` are linear layers that stay replicated
    although the region reads their outputs, both directly and through the column layers `fed_by_shared` (latent
    attention: the rotary key and the compressed key/value are one output). `is_attention`: the outputs of column
    layers are multiplied with each other.
    """

    block: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    shared_outputs: tuple[str, ...]
    is_attention: bool
    fed_by_shared: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FeatureParameter:
    """A parameter inside a block, by its `path` below it, with one element for each feature that is sharded.

    The features are the output of the column-parallel layer `column`, by its path below the block; if that is empty,
    the input of the row-parallel layers.
    """

    path: str
    column: str = ""


@dataclass(frozen=True, slots=True)
class BlockPatch:
    """What must change in a block so that it computes on one rank's heads or features.

    `attributes`, `head_arguments` and `head_outputs` are as in BlockPlan. `head_parameters` are parameters inside the
    block, by their path below it, with one row for each head or key/value head; they are sharded with the heads.
    `feature_parameters` are sharded with the features.
    """

    attributes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    head_arguments: tuple[tuple[str, int], ...] = ()
    head_outputs: tuple[str, ...] = ()
    head_parameters: tuple[str, ...] = ()
    feature_parameters: tuple[FeatureParameter, ...] = ()

    @property
    def needs_block(self) -> bool:
        """Whether something of the block changes beside its parameters."""
        return bool(self.attributes or self.head_arguments or self.head_outputs)


CutRegion = tuple[Region, RegionSharding, BlockPatch]


class ShardMismatch(Exception):
    """A rank would not compute its part of the unsharded result, or a sharding does not fit the sizes; says why."""


def candidate_regions(linears: Mapping[str, LinearInfo], trace: Trace, heads: Sequence[str] = ()) -> list[Region]:
    """Return the regions that the data flow allows, those with the most weights first. They may overlap.

    The row layers of a region all read the same column layers, and nothing else reads these. A linear layer whose
    output also goes elsewhere is a shared output, if its other readers are column layers of the region. `heads` are
    the output heads of the model, which are no row layers.
    """
    readers: dict[str, set[str]] = {}
    for name, sources in trace.sources.items():
        for source in sources:
            readers.setdefault(source, set()).add(name)
    for name in trace.reach_output:
        readers.setdefault(name, set()).add("")  # the output of the model, which is no linear layer
    rows_by_sources: dict[frozenset[str], list[str]] = {}
    for name, sources in trace.sources.items():
        if sources and name not in heads:
            rows_by_sources.setdefault(sources, []).append(name)
    regions = []
    for sources, rows in rows_by_sources.items():
        columns = sorted(name for name in sources if readers[name] <= set(rows) and name in linears)
        shared = sorted(sources - set(columns))
        legal = all(readers[name] <= {*rows, *columns} and name in linears for name in shared)
        fed = tuple(name for name in columns if trace.sources[name] & set(shared))
        legal = legal and all(trace.sources[name] <= set(shared) for name in fed)
        if columns and legal and len({linears[name].in_features for name in rows}) == 1:
            is_attention = any(name in trace.reach_attention for name in columns)
            block = common_block([*columns, *rows])
            regions.append(Region(block, tuple(columns), tuple(rows), tuple(shared), is_attention, fed))
    return sorted(regions, key=lambda region: -_weight_count(region, linears))


def _weight_count(region: Region, linears: Mapping[str, LinearInfo]) -> int:
    """Return the number of elements of the weights of a region."""
    return sum(linears[name].in_features * linears[name].out_features for name in (*region.columns, *region.rows))


def common_block(names: Sequence[str]) -> str:
    """Return the name of the innermost module that contains all these modules; empty for the model itself."""
    parents = [name.split(".")[:-1] for name in names]
    common = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*parents, strict=False))
    return ".".join(parts[0] for parts in common)


def block_plan(name: str, sharding: RegionSharding, patch: BlockPatch) -> BlockPlan:
    """Return the plan's record for the block `name` of a region."""
    heads = sharding.heads
    num_heads, slices = (heads.num_heads, tuple(held for held, _ in heads.slices)) if heads is not None else (0, ())
    return BlockPlan(name, num_heads, slices, patch.attributes, patch.head_arguments, patch.head_outputs)
