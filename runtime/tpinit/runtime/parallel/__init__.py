"""The parallel modules and their collectives."""

from tpinit.runtime.parallel.collectives import (
    TPRegionInput,
    copy_to_tp_region,
    gather_from_tp_region,
    reduce_from_tp_region,
    scatter_to_tp_region,
)
from tpinit.runtime.parallel.linear import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelHead,
    convert_module,
    fuse_columns,
)
from tpinit.runtime.parallel.loss import cross_entropy, enable_loss_parallel
from tpinit.runtime.parallel.modules import convert_embedding, convert_experts, reduce_output_grad, zero_in_forward
from tpinit.runtime.parallel.rng import RngTracker, broadcast_rng_state
from tpinit.runtime.parallel.sequence import gather_around, gather_tokens, map_input, refuse_hidden_states, shard_tokens

__all__ = [
    "ColumnParallelLinear",
    "TPRegionInput",
    "VocabParallelHead",
    "RowParallelLinear",
    "RngTracker",
    "map_input",
    "reduce_output_grad",
    "copy_to_tp_region",
    "cross_entropy",
    "convert_embedding",
    "convert_experts",
    "shard_tokens",
    "gather_from_tp_region",
    "gather_tokens",
    "enable_loss_parallel",
    "gather_around",
    "zero_in_forward",
    "fuse_columns",
    "refuse_hidden_states",
    "broadcast_rng_state",
    "scatter_to_tp_region",
    "reduce_from_tp_region",
    "convert_module",
]
