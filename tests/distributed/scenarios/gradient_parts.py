"""What people compute with the gradients of a sharded model by hand, beside the unsharded model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.init import normal_ as early_normal  # bound before tpinit replaces what it calls
from tpinit.runtime import GatheredParameters
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training import parts_in_functions
from tpinit.runtime.training.backward_hooks import BackwardHooks
from tpinit.runtime.training.gradient_parts import GradientPart
from transformers import initialization

from scenarios.optimizer_loop import MAKERS, gap, loss_of, start
from support.refusals import in_step, refusal_of


def _weight(model: Any) -> Any:
    return getattr(model, "module", model).model.layers[0].mlp.up_proj.weight


def _norm(model: Any) -> None:
    torch.stack([one.grad.norm() for one in model.parameters()]).norm()


def _centralize(model: Any) -> None:
    for one in model.parameters():
        if one.dim() > 1:
            one.grad.add_(-one.grad.mean(dim=1, keepdim=True))


def _perturb(model: Any) -> None:
    """Take the first step of SAM, with a norm of one's own."""
    norm = sum(one.grad.pow(2).sum() for one in model.parameters()) ** 0.5
    for one in model.parameters():
        one.data.add_(one.grad, alpha=float(0.05 / norm))


def _adapt(model: Any) -> None:
    """Scale each gradient by the norm of its weight (LARS)."""
    for one in model.parameters():
        one.grad.mul_(one.detach().norm() / one.grad.norm())


def _smooth(model: Any) -> None:
    mean = torch.zeros_like(_weight(model))
    mean.mul_(0.9).add_(_weight(model).grad, alpha=0.1).norm()


DRAWS: dict[str, Callable[[Any], Any]] = {
    "xavier": nn.init.xavier_uniform_,
    "kaiming": nn.init.kaiming_normal_,
    "normal": nn.init.normal_,
    "of .data": lambda weight: early_normal(weight.data, 0.0, 0.02),
    "orthogonal": lambda weight: nn.init.orthogonal_(weight),
    "of transformers": initialization.trunc_normal_,
}


def draws(rank: int) -> dict[str, Any]:
    """Draw a part by each function, then whole tensors, replicated ones and others; return the errors of each."""
    _, engine, _ = start(MAKERS["momentum"])
    weight, norm = _weight(engine), engine.module.model.norm.weight
    before = weight.detach().clone()
    texts = {name: refusal_of(lambda draw=draw: draw(weight)) for name, draw in DRAWS.items()}
    unchanged = torch.equal(weight.detach(), before)
    legal = [refusal_of(lambda: nn.init.zeros_(weight)), refusal_of(lambda: nn.init.normal_(norm))]
    legal += [refusal_of(lambda draw=draw: draw(torch.empty_like(weight))) for draw in DRAWS.values()]
    with GatheredParameters(weight, modifier_rank=0):
        legal.append(refusal_of(lambda: nn.init.xavier_uniform_(weight)))
        whole = weight.detach().clone()
    (part,) = [record for record in engine.plan.parameters if record.name == "model.layers.0.mlp.up_proj.weight"]
    wholes: list[Any] = [None, None]
    dist.all_gather_object(wholes, whole)
    kept = torch.equal(weight.detach(), local_part(wholes[0], part, 2, rank))
    return {"texts": texts, "unchanged": unchanged, "legal": legal, "kept": kept}


COLLECTIVES: dict[str, Callable[[Any], Any]] = {
    "equal weights": lambda model: [dist.broadcast(one.data, src=0) for one in model.parameters()],
    "an equal state dict": lambda model: [dist.broadcast(one, 0) for one in model.module.state_dict().values()],
    "equal parameters": lambda model: [dist.broadcast(one.detach(), 0) for one in model.parameters()],
    "a mean of gradients": lambda model: [dist.all_reduce(one.grad.div_(2)) for one in model.parameters()],
    "a mean of weights": lambda model: [dist.all_reduce(tensor=one.data, group=None) for one in model.parameters()],
    "on one rank": lambda model: [dist.reduce(one.grad, 0) for one in model.parameters()],
}


def collectives(rank: int, checked: bool = True) -> dict[str, Any]:
    """Run each collective over parts, then legal ones; without `checked` they run: the negative control."""
    _, engine, _ = start(MAKERS["momentum"])
    loss_of(engine, 0).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    weight, norm = _weight(engine), engine.module.model.norm.weight
    before = weight.detach().clone()
    with patch.object(parts_in_functions, "_check", parts_in_functions._check if checked else lambda *_: None):
        texts = {name: refusal_of(lambda run=run: run(engine)) for name, run in COLLECTIVES.items()}
    legal = [refusal_of(lambda: dist.broadcast(norm.data, 0)), refusal_of(lambda: dist.all_reduce(norm.grad))]
    copies = [torch.empty_like(weight.data) for _ in range(2)]
    legal.append(refusal_of(lambda: dist.all_gather(copies, weight.data)))
    legal.append(refusal_of(lambda: dist.broadcast(weight.detach().clone(), 0)))
    with GatheredParameters(weight):
        legal.append(refusal_of(lambda: dist.broadcast(weight.data, 0)))
    alone = [dist.new_group([one]) for one in range(2)][rank]  # as a data-parallel group, without the other part
    legal.append(refusal_of(lambda: dist.all_reduce(weight.grad, group=alone)))
    dist.destroy_process_group(alone)
    return {
        "texts": texts,
        "legal": legal,
        "unchanged": torch.equal(weight.detach(), before),
        "parts": rank == 0 or not torch.equal(copies[0], copies[1]),
        "in_step": in_step(rank),
    }


BY_HAND: dict[str, Callable[[Any], None]] = {
    "a norm": _norm,
    "centralized gradients": _centralize,
    "the perturbation of SAM": _perturb,
    "a rate for each layer": _adapt,
    "a mean over steps": _smooth,
    "a number of NaN": lambda model: _weight(model).grad.isnan().sum().item(),
    "values for a log": lambda model: _weight(model).grad.flatten().tolist(),
}


def _legal(model: Any, step: int) -> None:
    """Compute entry by entry: by value, by masks, by weights."""
    torch.nn.utils.clip_grad_value_(model.parameters(), 0.05)
    for one in model.parameters():
        one.grad = one.grad + 0.1 * one.detach() * one.grad.tanh()
        one.grad[~one.grad.isfinite()] = 0.0
        one.grad.data.clamp_(-0.04, 0.04)
    if step:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def by_hand(rank: int, bf16: bool, marked: bool = True) -> dict[str, Any]:
    """Try each computation behind a plain backward and one of the engine, then train with legal ones.

    Without `marked` the gradients are plain tensors: the negative control.
    """
    with patch.object(BackwardHooks, "mark", BackwardHooks.mark if marked else lambda _: None):
        return _by_hand(rank, bf16)


def _by_hand(rank: int, bf16: bool) -> dict[str, Any]:
    unsharded, engine, optimizer = start(MAKERS["momentum"], bf16=bf16)
    texts: dict[str, str] = {}
    before = [one.detach().clone() for one in engine.parameters()]
    for way in ("hand", "engine"):
        loss = loss_of(engine, 0)
        (loss.backward if way == "hand" else lambda loss=loss: engine.backward(loss))()  # type: ignore[no-untyped-call]  # torch's
        for name, compute in BY_HAND.items():
            texts[f"{name}, {way}"] = refusal_of(lambda compute=compute: compute(engine))
        engine.zero_grad()
    taken = torch.autograd.grad(loss_of(engine, 0), list(engine.parameters()))
    texts["torch.autograd.grad"] = refusal_of(lambda: torch.nn.utils.get_total_norm([one.double() for one in taken]))
    unchanged = all(torch.equal(one, two.detach()) for one, two in zip(before, engine.parameters(), strict=True))
    other = MAKERS["momentum"](unsharded)
    kinds = set()
    for step in range(3):
        for model, one in ((engine, optimizer), (unsharded, other)):
            one.zero_grad(set_to_none=step == 1)
            loss_of(model, step).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            _legal(model, step)
            one.step()
        kinds.add(type(_weight(engine).grad) is GradientPart)
    return {
        "texts": texts,
        "unchanged": unchanged,
        "weight": gap(engine, unsharded),
        "kinds": kinds,
        "in_step": in_step(rank),
    }
