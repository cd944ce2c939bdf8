"""Tokens sharded between the layers: what is refused, sent, kept for the backward, dropped and planned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from tpinit.reference.errors import TpinitError
from tpinit.runtime import from_config, initialize
from tpinit.runtime.forecast.cost import count_collectives, update_collectives, wire_bytes

from families import catalogue
from support.collectives import CollectiveCounter
from support.family_training import SGD
from support.own_checks import let_change


def _start(model: Any, cut: bool = True, **more: Any) -> Any:
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": dist.get_world_size()},
    }
    return initialize(model=model, config=config, sequence_parallel=cut, **more)[0]


def _error(run: Any) -> str:
    try:
        run()
    except TpinitError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def initialize_refused(rank: int, name: str) -> dict[str, Any]:
    """Request sequence parallelism of a model that can not have it; return the error."""
    model = catalogue.build(name)
    before = {key: one.detach().clone() for key, one in model.named_parameters()}
    text = _error(lambda: _start(model))
    same = all(torch.equal(before[key], one) for key, one in model.named_parameters())
    return {"text": text, "untouched": same}


def run_length(rank: int, name: str, length: int, **more: Any) -> dict[str, Any]:
    """Run a batch of some length; return the error."""
    model = catalogue.build(name).train()
    engine = _start(model)
    batch = catalogue.batch(name, model, 0, rows=2, length=length)
    return {"text": _error(lambda: engine(**batch, **more))}


def _sent(calls: list[tuple[str, int, int]]) -> list[tuple[str, int]]:
    return sorted((kind, elements) for kind, size, elements in calls if size > 1)


def count_step(rank: int, name: str) -> dict[str, Any]:
    """Count what one step sends and what it keeps for the backward, with and without sequence parallelism."""
    found: dict[str, Any] = {}
    for cut in (False, True):
        model = catalogue.build(name).train()
        engine = _start(model, cut)
        batch = catalogue.batch(name, model, 0, rows=2)
        engine(**batch)  # the first call compares the inputs
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        counter = CollectiveCounter()
        with counter.on():
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
                loss = engine(**batch).loss
            engine.backward(loss)
        own = {one.untyped_storage().data_ptr() for one in model.parameters()}
        activations = sum(held for place, held in kept.items() if place not in own)
        step = [*_foreseen(model, engine, batch, name), *_sums(engine)]
        if cut:
            found |= {"sent": _sent(counter.calls), "foreseen": sorted((one.kind, one.elements) for one in step)}
        word = "" if cut else "plain_"
        found[f"{word}bytes"] = sum(wire_bytes(one, dist.get_world_size()) for one in step)
        found[f"{word}kept"] = activations
    return found


def _sums(engine: Any) -> list[Any]:
    """Return the sums of partial gradients, which `engine.backward` issues behind the backward pass."""
    return [one for one in update_collectives(engine.plan, 1, 4) if one.module == "gradients of which ranks have parts"]


def _foreseen(model: Any, engine: Any, batch: Any, name: str) -> Any:
    whole = catalogue.build(name)
    inputs = {"input_ids": batch["input_ids"]}
    return count_collectives(whole, engine.plan, inputs, batch["input_ids"].numel(), 4)


def train_with_dropout(rank: int, name: str, checkpointing: bool = False, **overrides: Any) -> dict[str, Any]:
    """Train one step with dropout between the sharded regions; return what was dropped, and the gradient's norm."""
    torch.manual_seed(5)
    model = catalogue.build(name, **overrides).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    engine = _start(model)
    let_change(engine)  # the hook reads one rank's tokens
    torch.manual_seed(6)
    zeros: list[bool] = []
    dropout = next(one for key, one in model.named_modules() if key.endswith("mlp.dropout"))
    handle = dropout.register_forward_hook(lambda _, __, output: zeros.extend((output == 0).flatten().tolist()))
    loss = engine(**catalogue.batch(name, model, 0, rows=2)).loss
    handle.remove()
    engine.backward(loss)
    engine.step()
    return {"zeros": zeros, "loss": float(loss), "norm": engine.get_global_grad_norm()}


def start_from_config(rank: int) -> dict[str, Any]:
    """Start a model from its config with sequence parallelism; return its first loss and the unsharded one."""
    built = catalogue.build("llama")
    torch.manual_seed(3)
    whole = type(built)(built.config)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": dist.get_world_size()},
    }
    engine = from_config(built.config, seed=3, config=config, sequence_parallel=True)[0]
    batch = catalogue.batch("llama", whole, 0, rows=2)
    return {
        "loss": float(engine(**batch).loss),
        "whole": float(whole(**batch).loss),
        "stacks": [one.stack for one in engine.plan.sequences],
    }


def pass_plan_back(rank: int, name: str) -> dict[str, Any]:
    """Pass a plan with sharded tokens back: as it is, edited, and beside the keyword."""
    plan = _start(catalogue.build(name)).plan
    page = plan.to_json()
    again = _start(catalogue.build(name), cut=False, plan=page).plan
    edited = plan.to_json()
    edited["sequences"][0]["gather_inputs"] = edited["sequences"][0]["gather_inputs"][1:]
    return {
        "same": again.sequences == plan.sequences and again.layers == plan.layers,
        "edited": _error(lambda: _start(catalogue.build(name), cut=False, plan=edited)),
        "both": _error(lambda: _start(catalogue.build(name), plan=page)),
    }


def probe_broken_plan(rank: int, name: str, how: str) -> dict[str, Any]:
    """Initialize with the probe, by a plan that was broken after the dry run checked it; return the error."""
    import tpinit.runtime.init.launch as launch
    from tpinit.runtime.planning.schema import GradientRule

    original = launch.prepare

    def broken(*arguments: Any) -> Any:
        ready = original(*arguments)
        plan = ready.plan
        if how == "entry":  # columns sum once more what is summed already
            plan = replace(plan, layers=tuple(replace(one, reduce_input_grad=True) for one in plan.layers))
        elif how == "sum":  # norms for which each rank has a part of the gradient
            plan = replace(
                plan, parameters=tuple(replace(one, gradient_rule=GradientRule.REPLICATED) for one in plan.parameters)
            )
        return replace(ready, plan=plan)

    launch.prepare = broken
    try:
        ids = torch.arange(24).reshape(2, 12) % 11
        text = _error(lambda: _start(catalogue.build(name).train(), verify="probe", example={"input_ids": ids}))
    finally:
        launch.prepare = original
    return {"text": text}
