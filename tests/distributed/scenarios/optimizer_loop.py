"""Hand-written loops, master copies, clipping and states of the optimizer, beside the unsharded model's."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from tpinit.runtime import Engine, initialize
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training import optimizer_step
from tpinit.runtime.training.gradient_parts import plain_gradient

from support.refusals import in_step, refusal_of
from support.tiny_models import build, tokens

Make = Callable[[Any], torch.optim.Optimizer]


def _matrices(model: Any) -> list[Any]:
    return [one for name, one in model.named_parameters() if one.ndim == 2 and "layers" in name]


MAKERS: dict[str, Make] = {
    "adamw": lambda model: torch.optim.AdamW(
        model.parameters(), lr=0.01, eps=1e-3
    ),  # rounding of tiny gradients stays small
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
    "muon": lambda model: torch.optim.Muon(_matrices(model), lr=0.02),
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters(), lr=0.02),
}


def start(make: Make, bf16: bool = False, tp: int = 2, parallel: bool = False, **model: Any) -> tuple[Any, Any, Any]:
    """Return an unsharded model, and the engine and optimizer of its copy; the unsharded one in fp32 of bf16 weights.

    `parallel` shards the tokens too, so that gradients of norms are addends.
    """
    sharded = build(**model)
    unsharded = copy.deepcopy(sharded)
    if bf16:
        unsharded.bfloat16().float()
    config = {
        "tensor_parallel": {"autotp_size": tp},
        "gradient_clipping": 0,
        "bf16": {"enabled": bf16},
        "train_micro_batch_size_per_gpu": 2,
    }
    engine, optimizer, *_ = initialize(
        model=sharded, optimizer=make(sharded), config=config, sequence_parallel=parallel
    )
    return unsharded, engine, optimizer


def loss_of(model: Any, seed: int) -> torch.Tensor:
    ids = tokens(seed)
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def gap(engine: Engine, unsharded: Any, what: Callable[[Any], torch.Tensor | None] = lambda one: one) -> float:
    """Return the greatest distance of this rank's parts from the unsharded model's, relative to the greatest value."""
    whole, local = dict(unsharded.named_parameters()), dict(engine.module.named_parameters())
    apart = 0.0
    for record in engine.plan.parameters:
        one, other = what(whole[record.name]), what(local[record.name])
        if one is None or other is None:
            apart = max(apart, 0.0 if one is other else float("inf"))
            continue
        part = local_part(one.detach(), record, engine.plan.tp_size, engine.plan.tp_rank)
        difference = float((part - plain_gradient(other.detach()).float()).abs().max())
        apart = max(apart, difference / float(one.detach().abs().max().clamp(min=1e-3)))
    return apart


def by_hand(rank: int, name: str, bf16: bool = False, parallel: bool = False, clip: str = "") -> dict[str, Any]:
    """Train four steps with loss.backward() and optimizer.step(); return the distances from the unsharded run."""
    unsharded, engine, optimizer = start(MAKERS[name], bf16, parallel=parallel, num_key_value_heads=1)
    other = MAKERS[name](unsharded)
    losses, gradients, norms = [], [], []
    for step in range(4):
        loss, expected = loss_of(engine, step), loss_of(unsharded, step)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        expected.backward()  # type: ignore[no-untyped-call]  # the same
        gradients.append(gap(engine, unsharded, lambda one: one.grad))
        if clip:
            norms.append(relative(_clip(clip, engine), _clip("torch", unsharded, clip)))
            gradients.append(gap(engine, unsharded, lambda one: one.grad))
        optimizer.step()
        other.step()
        optimizer.zero_grad()
        other.zero_grad()
        losses.append(relative(loss, expected))
    return {
        "loss": max(losses),
        "gradient": max(gradients),
        "norm": max(norms, default=0.0),
        "weight": gap(engine, unsharded),
        "steps": engine.global_steps,
        "in_step": in_step(rank),
    }


def hand_and_engine(rank: int, name: str) -> dict[str, Any]:
    """Train three steps in bf16 by hand, and three by the engine; return what is equal, and whether weights moved."""
    _, one, optimizer = start(MAKERS[name], True)
    _, other, _ = start(MAKERS[name], True)
    before = [parameter.detach().clone() for parameter in one.parameters()]
    losses = []
    for step in range(3):
        loss = loss_of(one, step)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        optimizer.zero_grad()
        expected = loss_of(other, step)
        other.backward(expected)
        other.step()
        losses.append(float(loss) == float(expected))
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    pairs = list(zip(one.parameters(), other.parameters(), before, strict=True))
    return {
        "equal": all(torch.equal(mine, engines) for mine, engines, _ in pairs),
        "moved": sum(not torch.equal(mine, start) for mine, _, start in pairs)
        > len(held) // 2,  # bf16 hides small moves
        "losses": all(losses),
        "in_step": in_step(rank),
    }


def relative(one: torch.Tensor | float, other: torch.Tensor | float) -> float:
    return abs(float(one) / float(other) - 1)


def _clip(how: str, model: Any, like: str = "") -> torch.Tensor:
    """Clip the gradients of a model, and return their norm; the unsharded model `like` the sharded one."""
    order = float("inf") if "inf" in (how, like) else 3.0 if "3" in (how, like) else 2.0
    if "value" in (how, like):
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.01)
        return torch.ones(())
    if how == "local":
        norm = torch.stack([plain_gradient(one.grad).norm() for one in model.parameters()]).norm()
        for one in model.parameters():
            one.grad.mul_(0.1 / norm)
        return norm
    if how == "engine":
        norm = model.clip_grad_norm_(0.1)
    else:
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1, norm_type=order)
    return norm


def masters(rank: int, adopt: bool = True) -> dict[str, Any]:
    """Train in bf16: gradients can be read and changed, edited and loaded weights stay, copies are refused.

    Without `adopt` the master copies do not take edits: the negative control.
    """
    with patch.object(optimizer_step, "adopt_edits", optimizer_step.adopt_edits if adopt else lambda _: None):
        return _masters(rank)


def _masters(rank: int) -> dict[str, Any]:
    unsharded, engine, optimizer = start(MAKERS["momentum"], bf16=True)
    found: dict[str, Any] = {}
    weight = engine.module.lm_head.weight
    engine.backward(loss_of(engine, 0))
    loss_of(unsharded, 0).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    found["gradient"] = gap(engine, unsharded, lambda one: one.grad)
    found["dtype"] = str(weight.grad.dtype)
    found["own"] = all(
        one is two for one, two in zip(optimizer.param_groups[0]["params"], engine.parameters(), strict=True)
    )
    before = weight.detach().clone()
    weight.grad.zero_()
    engine.step()
    found["zeroed"] = float((weight - before).abs().max())
    with torch.no_grad():
        weight.data.add_(0.5)  # past the version counter
    engine.backward(loss_of(engine, 1))
    engine.step()
    found["mean"] = float(weight.float().mean())
    fresh = {name: value * 3 for name, value in engine.module.state_dict().items()}
    engine.module.load_state_dict(fresh)
    engine.backward(loss_of(engine, 2))
    for group in optimizer.param_groups:
        group["lr"] = 1e-6
    engine.step()
    found["loaded"] = max(
        float((one.float() - fresh[name].float()).abs().max()) for name, one in engine.module.named_parameters()
    )
    found["refused"] = [
        refusal_of(lambda: copy.deepcopy(optimizer)),
        refusal_of(lambda: pickle.dumps(optimizer)),
        refusal_of(lambda: type(optimizer).step(optimizer)),
    ]
    return {**found, "in_step": in_step(rank)}


def resume(rank: int, name: str, bf16: bool = True, drop: str = "", way: str = "engine") -> dict[str, Any]:
    """Train 3 + 3 steps over a save and a load, and 6 at once; return whether weights and losses are equal to the bit.

    `drop` is left out of the optimizer's state: the negative control.
    """

    def train(engine: Any, optimizer: Any, steps: range) -> list[float]:
        losses = []
        for step in steps:
            loss = loss_of(engine, step)
            if way == "engine":
                engine.backward(loss)
                engine.step()
            else:
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                optimizer.step()
                optimizer.zero_grad()
            losses.append(float(loss.detach()))
        return losses

    _, engine, optimizer = start(MAKERS[name], bf16)
    losses = train(engine, optimizer, range(6))
    _, first, saved = start(MAKERS[name], bf16)
    train(first, saved, range(3))
    file = io.BytesIO()
    torch.save({"model": first.module.state_dict(), "optimizer": copy.deepcopy(saved.state_dict())}, file)
    file.seek(0)
    state = torch.load(file)
    for entry in state["optimizer"]["state"].values():
        entry.pop(drop, None)
    _, second, loaded = start(MAKERS[name], bf16, seed=5)
    second.module.load_state_dict(state["model"])
    loaded.load_state_dict(state["optimizer"])
    resumed = train(second, loaded, range(3, 6))
    equal = all(torch.equal(one, two) for one, two in zip(engine.parameters(), second.parameters(), strict=True))
    return {"equal": equal and losses[3:] == resumed, "in_step": in_step(rank)}
