"""Every family trained sharded beside the unsharded model, adapters over it, and losses computed from its logits."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize

from families import catalogue
from support import family_training
from support.family_training import SGD, difference_by_parameter, tensors_of, train_beside_whole, train_family
from support.refusals import refusal_of

__all__ = ["loss_from_logits", "train_adapters", "train_family", "train_broken_llama"]


def train_broken_llama(rank: int) -> dict[str, Any]:
    """Train a Llama after one value of one shard was changed, on the last rank: the negative control."""

    def broken(**arguments: Any) -> Any:
        made = initialize(**arguments)
        engine, last = made[0], dist.get_world_size() - 1
        if rank == last:
            with torch.no_grad():
                engine.module.get_parameter("model.layers.0.mlp.down_proj.weight").view(-1)[0] += 0.1
        return made

    family_training.initialize = broken
    try:
        return train_family(rank, "llama", dist.get_world_size())
    finally:
        family_training.initialize = initialize


def train_adapters(rank: int, name: str, targets: list[str], sequence_parallel: bool = False) -> dict[str, Any]:
    """Train peft's adapters over sharded layers, with all other parameters frozen."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(catalogue.build(name), LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    generator = torch.Generator().manual_seed(7)
    for key, parameter in model.named_parameters():
        if "lora_" in key:  # B is zero at first, which would hide what A does
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    how = {"sequence_parallel": sequence_parallel}
    return train_beside_whole(rank, model, name, dist.get_world_size(), initialize_with=how)


def loss_from_logits(rank: int, name: str) -> dict[str, Any]:
    """Compute the loss outside the model from its logits, which are gathered for this."""
    model = catalogue.build(name).train()
    reference = copy.deepcopy(model)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": dist.get_world_size()},
    }
    engine, _, _, _ = initialize(model=model, config=config)
    batch = catalogue.batch(name, reference, 0, rows=2)
    labels = batch.pop("labels")
    losses = []
    for one in (engine, reference):
        logits = one(**batch).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        if one is engine:
            engine.backward(loss)
        else:
            loss.backward()
        losses.append(float(loss))
    with torch.no_grad():
        apart = float((engine(**batch).logits - reference(**batch).logits).abs().max())
        inside = engine(**batch, labels=labels)
    return {
        "losses": losses,
        "logits": apart,
        "gradients": max(difference_by_parameter(engine, tensors_of(reference, "grad"), "grad").values()),
        "whole_without_gradients": inside.logits.shape == (*labels.shape, model.config.vocab_size),
        "refused_with_labels": refusal_of(lambda: engine(**batch, labels=labels).logits),
    }
