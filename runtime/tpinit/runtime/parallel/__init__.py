"""The parallel modules, their region functions and collectives, the loss over sharded logits, and RNG states."""

from tpinit.runtime.parallel.collectives import (
    TPRegionInput,
    copy_to_tp_region,
    gather_from_tp_region,
    reduce_from_tp_region,
    scatter_to_tp_region,
)
from tpinit.runtime.parallel.layer_kinds import LAYER_REGIONS, LayerKind, LayerRegions, layer_regions
from tpinit.runtime.parallel.linear import (
    LINEAR_CLASSES,
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelHead,
    convert_module,
    fuse_columns,
)
from tpinit.runtime.parallel.loss import cross_entropy, enable_loss_parallel, gather_logits_always
from tpinit.runtime.parallel.modules import (
    convert_embedding,
    convert_experts,
    guard_experts,
    reduce_output_grad,
    zero_in_forward,
)
from tpinit.runtime.parallel.rng import RngTracker, broadcast_rng_state
from tpinit.runtime.parallel.sequence import gather_around, gather_tokens, map_input, shard_tokens, watch_tokens

__all__ = [
    "LAYER_REGIONS",
    "LINEAR_CLASSES",
    "ColumnParallelLinear",
    "LayerKind",
    "LayerRegions",
    "RngTracker",
    "RowParallelLinear",
    "TPRegionInput",
    "VocabParallelHead",
    "broadcast_rng_state",
    "convert_embedding",
    "convert_experts",
    "convert_module",
    "copy_to_tp_region",
    "cross_entropy",
    "enable_loss_parallel",
    "fuse_columns",
    "gather_around",
    "gather_from_tp_region",
    "gather_logits_always",
    "gather_tokens",
    "guard_experts",
    "layer_regions",
    "map_input",
    "reduce_from_tp_region",
    "reduce_output_grad",
    "scatter_to_tp_region",
    "shard_tokens",
    "zero_in_forward",
    "watch_tokens",
]
