"""Copies of parameters that are changed on one rank between two updates."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize

from support.family_training import SGD
from support.refusals import error_of, in_step
from support.tiny_models import build, tokens


def train_changed(rank: int, what: str, every: int = 2, tp: int = 2, bf16: bool = False) -> dict[str, Any]:
    """Train four updates; after the third the last rank's copy changes by one bit. Return what each update raised."""
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": tp},
        "bf16": {"enabled": bf16},
    }
    engine = initialize(model=build(), config=config, check_replicas_every=every)[0]
    ids, errors = tokens(), []
    for update in range(4):
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        if update == 3 and what and rank == dist.get_world_size() - 1:
            flip_a_bit(engine, what)
        errors.append(error_of(engine.step))
    return {"errors": errors, "collective": in_step(rank)}


def flip_a_bit(engine: Any, what: str) -> None:
    model = engine.module
    tensor = {
        "copy": model.model.norm.weight,
        "shard": model.model.layers[1].mlp.up_proj.weight,
        "buffer": model.model.rotary_emb.inv_freq,
        "master": next(one.target for one in engine._param_states if one.record.name == "model.norm.weight"),
    }[what]
    tensor.detach().view(-1)[:1].view(torch.uint8)[0] ^= 4
