"""Losses and gradients that are NaN or infinite, and replicated gradients that differ, in a step after good ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.training.gradient_parts import plain_gradient

from support.family_training import SGD
from support.refusals import error_of, in_step
from support.tiny_models import build, tokens


def engine_of(tp: int, keywords: dict[str, Any], **more: Any) -> Any:
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": tp},
        "gradient_clipping": 0,
        **more,
    }
    return initialize(model=build(), config=config, **keywords)[0]


def loss_of(engine: Any, seed: int) -> torch.Tensor:
    ids = tokens(seed)
    loss: torch.Tensor = engine(input_ids=ids, labels=ids).loss
    return loss


def step_with(rank: int, how: str, tp: int = 2, accumulation: int = 1, **keywords: Any) -> dict[str, Any]:
    """Train two good updates, one that is spoiled on the last rank or as `how` says, and a good one."""
    engine = engine_of(tp, keywords, gradient_accumulation_steps=accumulation, train_micro_batch_size_per_gpu=2)
    last = rank == dist.get_world_size() - 1
    errors, before = [], {}
    for update in range(4):
        if update == 2:
            before = {name: one.detach().clone() for name, one in engine.module.named_parameters()}
        for micro in range(accumulation):
            loss = loss_of(engine, update)
            spoiled = update == 2 and micro == accumulation - 1
            if spoiled and last:
                loss = loss * {"nan loss": float("nan"), "infinite loss": float("inf")}.get(how, 1.0)
                loss = loss + torch.tensor(float("inf")) if how == "constant" else loss
            engine.backward(loss)
            if spoiled:
                spoil(engine, how, last)
            errors.append(error_of(engine.step))
            if spoiled:
                kept = all(torch.equal(before[name], one) for name, one in engine.module.named_parameters())
    return {
        "error": next((error for error in errors if error["type"]), None),
        "count": sum(error["type"] is not None for error in errors),
        "kept": kept,
        "finite": all(bool(torch.isfinite(one).all()) for one in engine.module.parameters()),
        "steps": (engine.global_steps, engine.skipped_steps),
        "collective": in_step(rank),
    }


def spoil(engine: Any, how: str, last: bool) -> None:
    model = engine.module
    if how == "nan gradient of a shard" and last:
        model.model.layers[0].mlp.up_proj.weight.grad.fill_(float("nan"))
    elif how == "nan gradient of a copy" and last:
        model.model.norm.weight.grad[0] = float("nan")
    elif how == "clipped by its own norm":
        grads = [plain_gradient(one.grad) for one in model.parameters()]
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        for grad in grads:
            grad.mul_(1e-3 / norm)
    elif how == "one copy scaled" and last:
        model.model.norm.weight.grad.mul_(1.5)
    elif how == "rounding" and last:
        model.model.norm.weight.grad.mul_(1 + 1e-6)
