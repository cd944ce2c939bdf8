"""The collectives that the forecast counts, beside those that are sent."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.forecast.cost import Collective, count_collectives, update_collectives
from tpinit.runtime.planning.analysis.example_inputs import example_inputs

from families import catalogue
from support.collectives import CollectiveCounter
from support.family_training import SGD, family_batch, family_loss


def count_step(rank: int, name: str, tp: int, **overrides: Any) -> dict[str, Any]:
    """Train one step of two micro batches; return the collectives that were forecast and those that were sent."""
    model = catalogue.build(name, **overrides)
    whole = catalogue.build(name, **overrides)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": tp},
    }
    engine, _, _, _ = initialize(model=model, config=config)
    batch = family_batch(name, whole, 0, 2, False)
    tokens = batch["input_ids"].numel()
    ids = example_inputs(whole, torch.device("cpu"))[0]
    passes = count_collectives(whole, engine.plan, ids, tokens, 4)
    update = update_collectives(engine.plan, engine.groups.dp.size, 4)
    with torch.no_grad():
        engine(**batch)  # the first call compares the inputs
    counted = {"passes": CollectiveCounter(), "update": CollectiveCounter()}
    with counted["passes"].on():
        loss = family_loss(name, engine, batch, False)
        engine.backward(loss)
    engine.step()
    second = family_loss(name, engine, batch, False)
    with counted["update"].on():
        engine.backward(second)
        engine.step()
    return {
        "passes": [_seen(one) for one in passes],
        "update": [_seen(one) for one in update],
        "seen_passes": _sizes(counted["passes"]),
        "seen_update": _sizes(counted["update"]),
        "alone": sum(size == 1 for one in counted.values() for _, size, _ in one.calls),
        "logits": tokens * int(getattr(whole.config, "vocab_size", 0)),
        "layers": int(getattr(whole.config, "num_hidden_layers", 0)),
        "ranks": dist.get_world_size(),
    }


def _seen(one: Collective) -> tuple[str, int]:
    return one.kind, one.elements


def _sizes(counter: CollectiveCounter) -> list[tuple[str, int]]:
    return [(kind, elements) for kind, _, elements in counter.calls]
