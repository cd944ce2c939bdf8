"""Activation checkpointing where a layer begins with column-parallel linears (BERT), or all share an input (T5)."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist

from families import catalogue
from support.family_training import train_beside_whole


def checkpointed_layers(rank: int, family: str, reentrant: bool, sequence_parallel: bool = False) -> dict[str, Any]:
    """Train a family with all its layers checkpointed beside the unsharded model."""
    model: Any = catalogue.build(family)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    how = {"sequence_parallel": sequence_parallel}
    return train_beside_whole(rank, model, family, dist.get_world_size(), initialize_with=how)
