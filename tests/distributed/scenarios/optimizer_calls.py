"""Calls on the optimizer of a sharded model, GradScaler, penalties, and mixed loops, beside the unsharded model."""

from __future__ import annotations

import contextlib
import copy
import pickle
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.nn.utils import clip_grad_norm_ as early_clip  # both bound before tpinit replaces what they call
from torch.nn.utils import get_total_norm as early_norm
from tpinit.runtime.training import torch_functions

from scenarios.optimizer_loop import MAKERS, gap, loss_of, relative, start
from support.refusals import in_step, refusal_of

MOMENTUM = MAKERS["momentum"]


def backward(loss: torch.Tensor) -> torch.Tensor:
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return loss.detach()


def closures_and_groups(rank: int, bf16: bool) -> dict[str, Any]:
    """Step with closures, in groups with schedules, freezing and unfreezing, without dropping gradients."""

    def make(model: Any) -> torch.optim.Optimizer:
        for name, one in model.named_parameters():
            one.requires_grad_("mlp" not in name)
        named = dict(model.named_parameters())
        rest = [one for name, one in named.items() if "head" not in name and "embed" not in name]
        return torch.optim.SGD([{"params": rest}, {"params": [named["lm_head.weight"]], "lr": 0.01}], lr=0.05)

    unsharded, engine, optimizer = start(make, bf16)
    other = make(unsharded)
    pairs = ((engine, optimizer), (unsharded, other))
    first = engine.module.model.layers[0].mlp.up_proj.weight.detach().clone()
    schedules = [torch.optim.lr_scheduler.StepLR(one, 1, gamma=0.5) for _, one in pairs]
    results, losses = [], []
    for step in range(4):
        for model, one in pairs:
            module = getattr(model, "module", model)
            if step == 1:
                for name, parameter in module.named_parameters():
                    parameter.requires_grad_("self_attn" not in name)
            if step == 2:
                one.add_param_group({"params": [module.model.embed_tokens.weight], "lr": 0.02})
                one.param_groups[0]["lr"] = 0.03
            one.zero_grad(set_to_none=step != 2)
            results.append(one.step(partial(lambda model, step: backward(loss_of(model, step)), model, step)))
        losses.append(relative(results[-2], results[-1]))
        for schedule in schedules:
            schedule.step()
    return {
        "loss": max(losses),
        "weight": gap(engine, unsharded),
        "rates": [group["lr"] for group in optimizer.param_groups] == [group["lr"] for group in other.param_groups],
        "moved": not torch.equal(first, engine.module.model.layers[0].mlp.up_proj.weight),  # frozen in the first step
        "in_step": in_step(rank),
    }


def refusals(rank: int) -> dict[str, Any]:
    """Try what can't be right; the engine trains on after it as the unsharded model does."""
    unsharded, engine, optimizer = start(MOMENTUM)
    other = MOMENTUM(unsharded)
    foreign = torch.nn.Parameter(torch.ones(3))
    groups = optimizer.state_dict()["param_groups"]
    state = {"state": {0: {"momentum_buffer": torch.zeros(7, 3)}}, "param_groups": groups}
    few = copy.deepcopy(optimizer.state_dict())
    few["param_groups"][0]["params"].pop()
    muon = torch.optim.Muon([engine.module.model.layers[0].mlp.up_proj.weight], lr=0.1)
    engine.module.model.layers[0].mlp.up_proj.weight.grad = torch.zeros_like(muon.param_groups[0]["params"][0])
    texts = {
        "foreign": refusal_of(lambda: optimizer.add_param_group({"params": [foreign]})),
        "shape": refusal_of(lambda: optimizer.load_state_dict(state)),
        "groups": refusal_of(lambda: optimizer.load_state_dict(few)),
        "unknown": refusal_of(muon.step),
        "order": refusal_of(lambda: engine.clip_grad_norm_(1.0, norm_type=0)),
        "term": refusal_of(lambda: engine.sum_over_parameters({"lm_head.weight": torch.zeros(2)})),
    }
    engine.zero_grad()
    engine.backward(loss_of(engine, 0))
    texts["between"] = refusal_of(optimizer.step)
    engine.step()
    optimizer.param_groups[0]["params"].append(foreign)
    texts["appended"] = refusal_of(optimizer.step)
    optimizer.param_groups[0]["params"].pop()
    backward(loss_of(engine, 0) * float("inf"))
    texts["infinite"] = refusal_of(optimizer.step)
    texts["not clipped"] = refusal_of(lambda: engine.clip_grad_norm_(1.0, error_if_nonfinite=True))
    optimizer.zero_grad()
    backward(loss_of(unsharded, 0))
    other.step()
    other.zero_grad()
    for model, one in ((engine, optimizer), (unsharded, other)):
        backward(loss_of(model, 1))
        one.step()
    return {"texts": texts, "weight": gap(engine, unsharded), "in_step": in_step(rank)}


def states(rank: int) -> dict[str, Any]:
    """Copy and pickle a state dict, load it again, and load that of the unsharded run into a sharded one."""
    unsharded, engine, optimizer = start(MAKERS["adamw"])
    other = MAKERS["adamw"](unsharded)
    for model, one in ((engine, optimizer), (unsharded, other)):
        for step in range(2):
            one.zero_grad()
            backward(loss_of(model, step))
            one.step()
    found = {}
    for name, state in (
        ("copied", copy.deepcopy(optimizer.state_dict())),
        ("pickled", pickle.loads(pickle.dumps(optimizer.state_dict()))),
        ("unsharded", copy.deepcopy(other.state_dict())),
    ):
        _, second, loaded = start(MAKERS["adamw"], seed=4)
        second.module.load_state_dict(unsharded.state_dict() if name == "unsharded" else engine.module.state_dict())
        loaded.load_state_dict(state)
        backward(loss_of(second, 3))
        loaded.step()
        found[name] = second
    other.zero_grad()
    backward(loss_of(unsharded, 3))
    other.step()
    return {name: gap(second, unsharded) for name, second in found.items()} | {"in_step": in_step(rank)}


def scaled(rank: int, overflow_on: int | None, agree: bool = True, fused: bool = False) -> dict[str, Any]:
    """Train with GradScaler; in the second step the gradient of a slice of one rank overflows.

    Without `agree` the ranks do not agree on the overflow: the negative control.
    """
    seen = contextlib.nullcontext() if agree else patch.object(torch_functions, "found_infs", lambda *_: ())
    with seen:
        return _scaled(rank, overflow_on, agree, fused)


def _scaled(rank: int, overflow_on: int | None, agree: bool, fused: bool) -> dict[str, Any]:

    def make(model: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=0.01, eps=1e-3, fused=fused)

    unsharded, engine, optimizer = start(make)
    other = make(unsharded)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    steps = []
    for step in range(3):
        optimizer.zero_grad()
        scaler.scale(loss_of(engine, step)).backward()
        bad = step == 1 and overflow_on is not None
        if bad and rank == overflow_on:
            engine.module.model.layers[0].mlp.up_proj.weight.grad.fill_(float("inf"))
        if step == 2 and agree:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(engine.parameters(), 0.1)
        if not agree:
            scaler.unscale_(optimizer)
        text = refusal_of(lambda: scaler.step(optimizer)) if agree else "not stepped"
        scaler.update()
        steps.append((text, scaler.get_scale()))
        if bad or not agree:
            continue
        other.zero_grad()
        backward(loss_of(unsharded, step))
        if step == 2:
            torch.nn.utils.clip_grad_norm_(unsharded.parameters(), 0.1)
        other.step()
    return {"steps": steps, "updates": engine.global_steps, "weight": gap(engine, unsharded), "in_step": in_step(rank)}


def penalties(rank: int, parallel: bool) -> dict[str, Any]:
    """Add L2-SP, EWC and a norm of the weights to the loss; compare values and gradients, by hand and by the engine."""
    unsharded, engine, optimizer = start(MOMENTUM, parallel=parallel, num_key_value_heads=1)
    found: dict[str, Any] = {}
    for kind in ("l2_sp", "ewc", "norm"):
        for way in ("hand", "engine"):
            for model in (engine, unsharded):
                model.zero_grad()
                value = _penalty(kind, model)
                loss = 10 * value + loss_of(model, 0)
                if model is engine and way == "engine":
                    engine.backward(loss)
                else:
                    backward(loss)
                found[f"{kind} {way} value"] = relative(value, found.pop("value", value))
                found["value"] = value.detach()
            found.pop("value")
            found[f"{kind} {way} gradient"] = gap(engine, unsharded, lambda one: one.grad)
            engine.zero_grad()
            engine._awaits_step = False
    optimizer.zero_grad()
    local = torch.stack([one.square().sum() for one in engine.parameters()]).sum()
    engine.backward(loss_of(engine, 0) + 1e-4 * local.detach())
    refused = refusal_of(engine.step)
    engine.backward(loss_of(engine, 0) + 1e-4 * engine.sum_over_parameters(_squares(engine)))
    return {"found": found, "local": refused, "right": refusal_of(engine.step), "in_step": in_step(rank)}


def _squares(model: Any) -> dict[str, torch.Tensor]:
    return {name: one.square() for name, one in model.named_parameters()}


def _penalty(kind: str, model: Any) -> torch.Tensor:
    terms = {}
    for name, one in model.named_parameters():
        start = one.detach() + 0.01
        fisher = one.detach().abs() if kind == "ewc" else torch.ones(())
        terms[name] = one.square() if kind == "norm" else fisher * (one - start).square()
    if hasattr(model, "sum_over_parameters"):
        total: torch.Tensor = model.sum_over_parameters(terms)
    else:
        total = torch.stack([term.sum() for term in terms.values()]).sum()
    return total.sqrt() if kind == "norm" else total


def mixed(rank: int, tp: int, bf16: bool = False, hooks: bool = True) -> dict[str, Any]:
    """Mix loss.backward() and engine.backward over TP and DP with gradients that are addends; clip early and whole.

    Without `hooks` a plain backward leaves addends: the negative control.
    """
    unsharded, engine, optimizer = start(MOMENTUM, bf16, tp=tp, parallel=True, num_key_value_heads=1)
    other = MOMENTUM(unsharded)
    engine._hooks._paused = not hooks
    replicas = dist.get_world_size() // tp
    seeds = {step: [10 * step + replica for replica in range(replicas)] for step in range(9)}
    mine = engine.groups.data_index
    gradients, norms = [], []
    plans = ("hand", "hand hand", "hand engine", "engine hand", "engine engine")
    for number, plan in enumerate(plans):
        for index, way in enumerate(plan.split()):
            loss = loss_of(engine, seeds[number + index][mine])
            if way == "hand":
                backward(loss)
            else:
                engine.backward(loss)
            for seed in seeds[number + index]:
                backward(loss_of(unsharded, seed) / replicas)
        gradients.append(gap(engine, unsharded, lambda one: one.grad))
        if not hooks:
            return {"gradient": gradients[0]}
        for total in (torch.nn.utils.get_total_norm, early_norm):
            norm = total([one.grad for one in engine.parameters()])
            norms.append(relative(norm, total([one.grad for one in unsharded.parameters()])))
        clip = early_clip if number % 2 else torch.nn.utils.clip_grad_norm_
        norms.append(relative(clip(engine.parameters(), 0.2), early_clip(unsharded.parameters(), 0.2)))
        if "engine" in plan:
            engine.step()
        else:
            optimizer.step()
            optimizer.zero_grad()
        other.step()
        other.zero_grad()
    loss, expected = loss_of(engine, 0), loss_of(unsharded, 0)
    taken = torch.autograd.grad(loss, list(engine.parameters()))
    for parameter, gradient in zip(engine.parameters(), taken, strict=True):
        parameter.grad = gradient
    backward(expected)
    return {
        "gradient": max(gradients),
        "norm": max(norms),
        "weight": gap(engine, unsharded),
        "autograd.grad": gap(engine, unsharded, lambda one: one.grad),
        "steps": engine.global_steps,
        "in_step": in_step(rank),
    }


def alone(rank: int) -> dict[str, Any]:
    """Clip and step on the first rank only, and train on: every rank is told."""
    _, engine, optimizer = start(MOMENTUM)
    texts = []
    for call in (lambda: torch.nn.utils.clip_grad_norm_(engine.parameters(), 1.0), optimizer.step):
        backward(loss_of(engine, 0))
        texts.append(refusal_of(call) if rank == 0 else refusal_of(lambda: loss_of(engine, 1)))
        optimizer.zero_grad()
        backward(loss_of(engine, 1))
        optimizer.step()
    return {"texts": texts, "in_step": in_step(rank)}
