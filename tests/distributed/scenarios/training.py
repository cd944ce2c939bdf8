"""A sharded model trained beside the unsharded one on the same data, and ways to break the sharded run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from tpinit.runtime import initialize
from tpinit.runtime.parallel import reduce_from_tp_region
from tpinit.runtime.slicing import assemble

from support.collectives import CollectiveCounter
from support.own_checks import switch_off
from support.process_groups import group_arguments
from support.tiny_models import LENGTH, VOCABULARY, build

OPTIMIZERS = {
    "sgd": {"type": "SGD", "params": {"lr": 0.05, "momentum": 0.9}},
    "adamw": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-6, "weight_decay": 0.1}},
    "adam": {"type": "Adam", "params": {"lr": 1e-3, "eps": 1e-6}},
}


def train_beside_reference(
    rank: int,
    family: str = "llama",
    tp: int = 2,
    source: str = "created",
    optimizer: str = "adamw",
    clipping: float = 0.0,
    accumulation: int = 1,
    steps: int = 5,
    break_with: str = "",
    base: bool = False,
    checkpointing: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Train sharded and unsharded on the same data; return their largest differences, and the collectives sent."""
    model = build(family, base, **options)
    reference = copy.deepcopy(model)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clipping,
        "optimizer": OPTIMIZERS[optimizer],
    }
    engine, _, _, _ = initialize(model=model, **group_arguments(source, model, tp, rank, config))
    if break_with:
        switch_off(engine)
        break_run(break_with, engine)
    reference_optimizer = make_optimizer(OPTIMIZERS[optimizer], reference)
    replicas = engine.groups.dp.size if source.startswith("row2") else dist.get_world_size() // engine.groups.tp.size
    worst = {"loss": 0.0, "gradient": 0.0, "norm": 0.0, "weight": 0.0}
    counter = CollectiveCounter()
    losses, where = [], []
    for step in range(steps):
        shape = (replicas * accumulation, 2, LENGTH)
        batch = torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(step))
        loss = accumulate(engine, batch, accumulation, base, counter)
        expected = loss_of(reference, batch.reshape(-1, LENGTH), base)
        expected.backward()
        losses.append(float(expected))
        gradients = differences(engine, reference, "grad")
        where.append(max(gradients, key=lambda name: gradients[name]))
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), clipping or float("inf"))
        engine.step()
        reference_optimizer.step()
        reference_optimizer.zero_grad()
        found = {
            "loss": relative_distance(loss, expected.detach()),
            "gradient": max(gradients.values()),
            "norm": abs(engine.get_global_grad_norm() / float(norm) - 1),
            "weight": max(differences(engine, reference, "data").values()),
        }
        worst = {what: max(worst[what], found[what]) for what in worst}
    return {**worst, "where": where, "losses": losses, "calls": counter.calls, **described(engine)}


def accumulate(engine: Any, batch: torch.Tensor, accumulation: int, base: bool, counter: Any) -> torch.Tensor:
    """Run the micro batches of this rank's replica up to the last backward; return the mean loss of all ranks."""
    mine = engine.groups.data_index
    total = torch.zeros(())
    for micro in range(accumulation):
        ids = batch[mine * accumulation + micro]
        with counter.on():
            loss = loss_of(engine, ids, base)
            engine.backward(loss)
        total += loss.detach() / accumulation
        if micro < accumulation - 1:
            engine.step()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def described(engine: Any) -> dict[str, Any]:
    """Return the row of the decision, the groups, and what of the model is sharded and tied."""
    return {
        "row": engine.decision.row,
        "tp_ranks": engine.groups.tp.ranks,
        "dp_ranks": engine.groups.dp.ranks,
        "steps": engine.global_steps,
        "tied": len(engine.plan.parameters) < len(list(engine.module.named_parameters(remove_duplicate=False))),
        "cut": sum(record.dim is not None for record in engine.plan.parameters),
    }


def make_optimizer(kind: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    """Return the torch optimizer that a config describes, made without the runtime."""
    params = dict(kind["params"])
    if kind["type"] == "SGD":
        return torch.optim.SGD(model.parameters(), **params)
    params.setdefault("weight_decay", 0.0)
    return torch.optim.AdamW(model.parameters(), **params)


def loss_of(model: Any, ids: torch.Tensor, base: bool) -> torch.Tensor:
    if base:
        hidden = model(input_ids=ids).last_hidden_state
        # Not the hidden state's own square: behind a norm that is constant, and its gradient mere noise.
        weights = torch.randn(hidden.shape[1:], generator=torch.Generator().manual_seed(1))
        return (hidden * weights).sum((1, 2)).mean()
    return model(input_ids=ids, labels=ids).loss


def differences(engine: Any, reference: nn.Module, what: str) -> dict[str, float]:
    """Return the relative distance of every parameter's `what` ("grad" or "data") from the reference, by name."""
    expected = dict(reference.named_parameters())
    actual = dict(engine.module.named_parameters())
    return {
        record.name: relative_distance(
            unsharded(getattr(actual[record.name], what), record, engine), getattr(expected[record.name], what)
        )
        for record in engine.plan.parameters
    }


def unsharded(local: torch.Tensor, record: Any, engine: Any) -> torch.Tensor:
    """Gather the shards of a tensor over the TP group and assemble them as the plan says."""
    group = engine.groups.tp
    if record.dim is None or group.group is None:
        return local.detach().clone()
    parts = [torch.empty(record.local_shape(group.size, place), dtype=local.dtype) for place in range(group.size)]
    dist.all_gather(parts, local.detach().contiguous(), group=group.group)
    return assemble(parts, record)


def relative_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the distance of two tensors in the 2-norm, relative to the norm of the second."""
    return float((one - other).norm() / other.norm().clamp(min=1e-30))


def break_run(how: str, engine: Any) -> None:
    """Break a run in a way that the comparison must detect: the negative controls."""
    if how == "no-input-gradient-sum":
        # Without this all-reduce each rank keeps its own part of the input's gradient.
        attention = engine.module.model.layers[1].self_attn
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
            layer.tp_fused = layer.tp_region_input = None
    elif how == "averages-over-tp":
        engine._hooks.buckets._dp = engine.groups.tp
    elif how == "counts-replicated-per-rank":
        for state in engine._param_states:
            if state.record.dim is None:
                state.record = replace(state.record, dim=0)
    elif how == "bias-per-rank":

        def forward(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
            return lambda x: reduce_from_tp_region(
                functional.linear(x, layer._parameters["weight"], layer._parameters["bias"]),
                layer.tp_region_output.group,
            )

        for layer in engine.module.model.layers:
            layer.self_attn.o_proj.forward = forward(layer.self_attn.o_proj)
    else:
        raise AssertionError(how)
