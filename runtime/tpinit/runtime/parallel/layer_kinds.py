"""The kinds of parallel layers, and the table of the region functions at their input and output.

The table is the one place that says which collectives a kind of layer issues: the layers call the region functions of
their row, and the forecast reads the collectives of these functions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from tpinit.runtime.parallel.collectives import (
    RegionFunction,
    copy_to_tp_region,
    gather_from_tp_region,
    reduce_from_tp_region,
    scatter_to_tp_region,
)
from tpinit.runtime.parallel.sequence import reduce_scatter_tokens

__all__ = ["LAYER_REGIONS", "LayerKind", "LayerRegions", "layer_regions"]


class LayerKind(str, Enum):
    """How a module is sharded.

    `column`: column-parallel linear, sharded output features. `row`: row-parallel linear, sharded input features, and
    an output that is summed over the ranks. `column gather`: column-parallel with a gathered output. `row split`:
    row-parallel with a replicated input that each rank slices. `shared output`: a replicated linear whose output is
    read inside a tensor-parallel region, so that each rank has a part of the output's gradient. `embedding`, `head`:
    vocab-parallel embedding and output head. `experts`: a block of experts, each expert sharded like column and row.
    """

    COLUMN = "column"
    ROW = "row"
    COLUMN_GATHER = "column gather"
    ROW_SPLIT = "row split"
    SHARED_OUTPUT = "shared output"
    EMBEDDING = "embedding"
    HEAD = "head"
    EXPERTS = "experts"


@dataclass(frozen=True, slots=True)
class LayerRegions:
    """The region functions that a layer applies to its input and to its output; None where it applies none.

    `copy_to_tp_region` at the input is shared by all layers that read the same tensor (see `TPRegionInput`).
    """

    input: RegionFunction | None = None
    output: RegionFunction | None = None


LAYER_REGIONS: dict[LayerKind, LayerRegions] = {
    LayerKind.COLUMN: LayerRegions(copy_to_tp_region, None),
    LayerKind.ROW: LayerRegions(None, reduce_from_tp_region),
    LayerKind.COLUMN_GATHER: LayerRegions(copy_to_tp_region, gather_from_tp_region),
    LayerKind.ROW_SPLIT: LayerRegions(scatter_to_tp_region, reduce_from_tp_region),
    LayerKind.SHARED_OUTPUT: LayerRegions(None, copy_to_tp_region),
    LayerKind.EMBEDDING: LayerRegions(None, reduce_from_tp_region),
    # While the model computes its own loss the head does not gather its logits: see `loss`.
    LayerKind.HEAD: LayerRegions(copy_to_tp_region, gather_from_tp_region),
    # The copy is applied to every floating-point input: the hidden states and the router's weights.
    LayerKind.EXPERTS: LayerRegions(copy_to_tp_region, reduce_from_tp_region),
}


def layer_regions(kind: LayerKind, *, reduce_input_grad: bool = True, scatter_output: bool = False) -> LayerRegions:
    """Return the region functions of a layer of this kind.

    `reduce_input_grad` False: the gradient of the input is summed over the ranks elsewhere, so the input is not copied.
    `scatter_output`: under sequence parallelism the output is reduce-scattered over the tokens instead of all-reduced.
    """
    regions = LAYER_REGIONS[kind]
    if not reduce_input_grad and regions.input is copy_to_tp_region:
        regions = replace(regions, input=None)
    if scatter_output:
        regions = replace(regions, output=reduce_scatter_tokens)
    return regions
