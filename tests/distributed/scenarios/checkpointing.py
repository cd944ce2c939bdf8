"""Activation checkpointing where a layer begins with column-parallel linears (BERT), or all share an input (T5)."""

from __future__ import annotations

from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from tpinit.runtime.parallel import collectives

from families import catalogue
from scenarios.optimizer_loop import MAKERS, gap, start
from support.family_training import train_beside_whole
from support.tiny_models import tokens


def checkpointed_layers(rank: int, family: str, reentrant: bool, sequence_parallel: bool = False) -> dict[str, Any]:
    """Train a family with all its layers checkpointed beside the unsharded model."""
    model: Any = catalogue.build(family)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    how = {"sequence_parallel": sequence_parallel}
    return train_beside_whole(rank, model, family, dist.get_world_size(), initialize_with=how)


def _keep_products(_: Any, function: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if function in products else CheckpointPolicy.PREFER_RECOMPUTE


def selective(rank: int, seen: bool = True) -> float:
    """Keep the products of a checkpointed forward; return how far the gradients are off.

    Without `seen` the layers do not see the mode that keeps them: the negative control.
    """
    unsharded, engine, _ = start(MAKERS["sgd"])
    ids = tokens()
    with patch.object(collectives, "dispatch_modes", collectives.dispatch_modes if seen else list):
        for model in (unsharded, engine):
            contexts = partial(create_selective_checkpoint_contexts, _keep_products)
            forward = partial(model, input_ids=ids, labels=ids)
            loss = checkpoint(lambda forward=forward: forward().loss, use_reentrant=False, context_fn=contexts)
            loss.backward()
    return gap(engine, unsharded, lambda one: one.grad)
