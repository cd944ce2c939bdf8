"""Regions: which matrices are cut together, read from the data flow."""

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
    "Region",
    "ShardMismatch",
    "block_plan",
    "candidate_regions",
    "common_block",
]


@dataclass(frozen=True, slots=True)
class Region:
    """What is cut together: the column matrices, the row matrices that read what they lead to, the block around.

    `shared` are matrices whose whole output enters the block too, beside being read by its columns `fed` (the
    rotary key of latent attention).
    """

    block: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    shared_outputs: tuple[str, ...]
    is_attention: bool
    fed_by_shared: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockPatch:
    """What a block must be told so that it works on a part.

    `numbers`: paths below the block (`num_heads`, `config.n_head`) and the number for each rank. `arguments`:
    tensor arguments, by name, of which a rank takes its heads, with the dimension. `outputs`: modules inside
    whose output's last dimension counts heads; `parameters`: parameters inside with one row for each head, or key/value
    head.
    """

    attributes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    head_arguments: tuple[tuple[str, int], ...] = ()
    head_outputs: tuple[str, ...] = ()
    head_parameters: tuple[str, ...] = ()


CutRegion = tuple[Region, RegionSharding, BlockPatch]


class ShardMismatch(Exception):
    """A rank would compute something else than its part; the text says what."""


def candidate_regions(matrices: Mapping[str, LinearInfo], seen: Trace, heads: Sequence[str] = ()) -> list[Region]:
    """Return the regions that the data flow allows, those with the most weights first. They may overlap.

    A region is a set of row matrices that all read the same column matrices, whose outputs go nowhere else.
    A matrix that such a block reads and others read too is shared, if those others are columns of the block.
    `heads` are output heads, which end the model and are no rows.
    """
    readers: dict[str, set[str]] = {}
    for name, sources in seen.sources.items():
        for source in sources:
            readers.setdefault(source, set()).add(name)
    for name in seen.reach_output:
        readers.setdefault(name, set()).add("")
    by_sources: dict[frozenset[str], list[str]] = {}
    for name, sources in seen.sources.items():
        if sources and name not in heads:
            by_sources.setdefault(sources, []).append(name)
    found = []
    for sources, rows in by_sources.items():
        columns = sorted(name for name in sources if readers[name] <= set(rows) and name in matrices)
        shared = sorted(sources - set(columns))
        legal = all(readers[name] <= {*rows, *columns} and name in matrices for name in shared)
        fed = tuple(name for name in columns if seen.sources[name] & set(shared))
        legal = legal and all(seen.sources[name] <= set(shared) for name in fed)
        if columns and legal and len({matrices[name].in_features for name in rows}) == 1:
            attends = any(name in seen.reach_attention for name in columns)
            found.append(
                Region(common_block([*columns, *rows]), tuple(columns), tuple(rows), tuple(shared), attends, fed)
            )
    return sorted(found, key=lambda region: -_weight(region, matrices))


def _weight(region: Region, matrices: Mapping[str, LinearInfo]) -> int:
    return sum(matrices[name].in_features * matrices[name].out_features for name in (*region.columns, *region.rows))


def common_block(names: Sequence[str]) -> str:
    """Return the innermost module in which all of these modules lie, by its name."""
    split = [name.split(".")[:-1] for name in names]
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*split, strict=False))
    return ".".join(parts[0] for parts in same)


def block_plan(name: str, layout: RegionSharding, adaptation: BlockPatch) -> BlockPlan:
    """Return what a block must be told, as a record of the plan."""
    heads = layout.heads
    count, ranks = (heads.num_heads, tuple(held for held, _ in heads.slices)) if heads is not None else (0, ())
    return BlockPlan(name, count, ranks, adaptation.attributes, adaptation.head_arguments, adaptation.head_outputs)
