"""Loops that DeepSpeed's engine allows, over tp 2 and dp 2, beside one unsharded model that sees all samples."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tpinit.runtime import Engine, initialize

from scenarios.engine import config
from support.refusals import in_step, refusal_of
from support.tiny_models import build, tokens


def _pair(accumulation: int) -> tuple[Any, torch.optim.Optimizer, Engine]:
    model = build()
    unsharded = copy.deepcopy(model)
    settings = config(gradient_accumulation_steps=accumulation, tensor_parallel={"autotp_size": 2})
    engine, *_ = initialize(model=model, config=settings, sequence_parallel=True)  # so that some gradients are addends
    return unsharded, torch.optim.SGD(unsharded.parameters(), lr=0.05, momentum=0.9), engine


def _batch(number: int, replica: int) -> torch.Tensor:
    return tokens(10 * number + replica)


def _loss(model: Any, ids: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def _deepspeed(engine: Engine, batches: list[torch.Tensor]) -> None:
    for ids in batches:
        engine.backward(_loss(engine, ids))
        engine.step()


def _accelerate(engine: Engine, batches: list[torch.Tensor]) -> None:
    """Set the boundary by hand, and call `step` there only."""
    for number, ids in enumerate(batches):
        engine.set_gradient_accumulation_boundary(is_boundary=number == len(batches) - 1)
        engine.backward(_loss(engine, ids))
    engine.step()


def _no_sync(engine: Engine, batches: list[torch.Tensor]) -> None:
    for number, ids in enumerate(batches):
        last = number == len(batches) - 1
        engine.set_gradient_accumulation_boundary(last)
        with nullcontext() if last else engine.no_sync():
            engine.backward(_loss(engine, ids))
    engine.step()


def _several(engine: Engine, batches: list[torch.Tensor]) -> None:
    """Call `backward` for every batch at the boundary: each one averages its own gradients."""
    engine.set_gradient_accumulation_boundary(True)
    for ids in batches:
        engine.backward(_loss(engine, ids))
    engine.step()


def _train_batch(engine: Engine, batches: list[torch.Tensor]) -> None:
    engine.train_batch(iter([{"input_ids": ids, "labels": ids} for ids in batches]))


LOOPS: dict[str, Callable[[Engine, list[torch.Tensor]], None]] = {
    "deepspeed": _deepspeed,
    "accelerate": _accelerate,
    "no_sync": _no_sync,
    "several": _several,
    "train_batch": _train_batch,
}


def loops(rank: int) -> dict[str, Any]:
    """Train 3 updates of 3 micro batches with every loop; return the largest differences from the unsharded run."""
    found = {}
    for name, loop in LOOPS.items():
        unsharded, optimizer, engine = _pair(accumulation=3)
        norms = []
        for step in range(3):
            for number in range(3):
                for replica in range(2):
                    (_loss(unsharded, _batch(3 * step + number, replica)) / 6).backward()
            expected = torch.nn.utils.clip_grad_norm_(unsharded.parameters(), float("inf"))
            optimizer.step()
            optimizer.zero_grad()
            loop(engine, [_batch(3 * step + number, engine.groups.data_index) for number in range(3)])
            norms.append(abs(float(expected) - (engine.get_global_grad_norm() or 0.0)))
            norms.append(abs(float(expected) - float(engine.optimizer._global_grad_norm)))  # type: ignore[union-attr]
        ids = tokens(99)
        with torch.no_grad():
            logits = float((unsharded(input_ids=ids).logits - engine(input_ids=ids).logits).abs().max())
        found[name] = {
            "norm": max(norms),
            "logits": logits,
            "steps": engine.global_steps,
            "was": engine.was_step_applied(),
        }
    return {"found": found, "in_step": in_step(rank)}


def refusals(rank: int) -> dict[str, Any]:
    """Call `step`, `backward`, `train_batch` where they can't be right; the engine trains on after each."""
    _, _, engine = _pair(accumulation=1)
    ids = tokens()
    texts = {"step first": refusal_of(engine.step)}
    with engine.no_sync():
        texts["step in no_sync"] = refusal_of(engine.step)
        texts["no_sync twice"] = refusal_of(lambda: engine.no_sync().__enter__())
        engine.backward(_loss(engine, ids))
    texts["not averaged"] = refusal_of(engine.step)
    engine.backward(_loss(engine, ids))
    with engine.no_sync():
        texts["backward in no_sync"] = refusal_of(lambda: engine.backward(_loss(engine, ids)))
    engine.step()
    texts["data ends"] = refusal_of(lambda: engine.train_batch(iter([])))
    texts["no data"] = refusal_of(lambda: engine.train_batch())
    texts["no loss"] = refusal_of(lambda: engine.train_batch(iter([{"input_ids": ids}])))
    texts["deepcopy"] = refusal_of(lambda: copy.deepcopy(engine))
    texts["half"] = refusal_of(engine.half)
    texts["state dict"] = refusal_of(lambda: engine.load_state_dict(engine.module.state_dict()))
    texts["batch size"] = refusal_of(lambda: engine.set_train_batch_size(3))
    engine.eval()
    texts["evaluation mode"] = refusal_of(lambda: engine.train_batch(iter([ids])))
    return {"texts": texts, "steps": engine.global_steps, "in_step": in_step(rank)}


def names(rank: int) -> dict[str, Any]:
    """Use the engine as a torch.nn.Module and ask it what DeepSpeed's engine answers."""
    data = [{"input_ids": ids, "labels": ids} for ids in tokens().repeat(4, 1)]
    settings = config(gradient_accumulation_steps=2, tensor_parallel={"autotp_size": 2})
    engine, _, loader, _ = initialize(model=build(), config=settings, training_data=data)
    state = {name: value.clone() for name, value in engine.state_dict().items()}
    losses = [float(engine.train_batch()) for _ in range(3)]
    evaluated = float(engine.eval_batch(_endless(data[0])))
    engine.load_state_dict(state)
    restored = all(torch.equal(value, state[name]) for name, value in engine.state_dict().items())
    engine.eval()
    modes = engine.training, engine.module.training, engine.module.lm_head.training
    engine.train()
    engine.set_train_batch_size(12)
    return {
        "module": isinstance(engine, nn.Module) and [name for name, _ in engine.named_children()] == ["module"],
        "prefix": {name.split(".")[0] for name, _ in engine.named_parameters()},
        "restored": restored,
        "losses": losses,
        "evaluated": evaluated,
        "modes": (*modes, engine.training),
        "same": engine.to("cpu") is engine and engine.float() is engine,
        "config": engine.config["gradient_accumulation_steps"],
        "loader": engine.training_dataloader is loader,
        "epoch": engine.batches.epoch if engine.batches is not None else None,
        "ranks": (engine.global_rank, engine.world_size, engine.dp_world_size, engine.mp_world_size),
        "batch": engine.get_batch_info(),
        "answers": (engine.zero_optimization_stage(), engine.bfloat16_enabled(), engine.autotp_size(), engine.get_lr()),
        "generated": tuple(engine.generate(tokens(), max_new_tokens=2, do_sample=False).shape),
        "missing": hasattr(engine, "save_checkpoint_of_nobody"),
        "in_step": in_step(rank),
        "world": dist.get_world_size(),
    }


def _endless(sample: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    while True:
        yield {name: ids[None] for name, ids in sample.items()}
