"""The parallel modules and their collectives."""

from tpinit.runtime.layers.collectives import (
    Entry,
    copy_to_group,
    gather_over_group,
    split_over_group,
    sum_over_group,
)
from tpinit.runtime.layers.linear import ColumnLayer, HeadLayer, RowLayer, turn
from tpinit.runtime.layers.loss import cross_entropy, keep_logits_apart
from tpinit.runtime.layers.modules import collect_output, cut_embedding, cut_experts

__all__ = [
    "ColumnLayer",
    "Entry",
    "HeadLayer",
    "RowLayer",
    "collect_output",
    "copy_to_group",
    "cross_entropy",
    "cut_embedding",
    "cut_experts",
    "gather_over_group",
    "keep_logits_apart",
    "split_over_group",
    "sum_over_group",
    "turn",
]
