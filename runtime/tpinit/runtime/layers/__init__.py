"""The parallel modules and their collectives."""

from tpinit.runtime.layers.collectives import (
    Entry,
    copy_to_group,
    gather_over_group,
    split_over_group,
    sum_over_group,
)
from tpinit.runtime.layers.linear import ColumnLayer, HeadLayer, RowLayer, open_door, turn
from tpinit.runtime.layers.loss import cross_entropy, keep_logits_apart
from tpinit.runtime.layers.modules import collect_output, cut_embedding, cut_experts, leave_out
from tpinit.runtime.layers.sequence import change_input, cut_stack, gather_tokens, keep_whole, refuse_hidden_states
from tpinit.runtime.layers.streams import Streams, share_random_state

__all__ = [
    "ColumnLayer",
    "Entry",
    "HeadLayer",
    "RowLayer",
    "Streams",
    "change_input",
    "collect_output",
    "copy_to_group",
    "cross_entropy",
    "cut_embedding",
    "cut_experts",
    "cut_stack",
    "gather_over_group",
    "gather_tokens",
    "keep_logits_apart",
    "keep_whole",
    "leave_out",
    "open_door",
    "refuse_hidden_states",
    "share_random_state",
    "split_over_group",
    "sum_over_group",
    "turn",
]
