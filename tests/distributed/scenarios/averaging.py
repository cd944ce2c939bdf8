"""Gradients averaged over two data-parallel ranks in every way that a config can ask for."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import weakref
from typing import Any

import torch
from tpinit.runtime import initialize

from support.tiny_models import build, tokens

ROUND = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def _expected(addends: list[torch.Tensor], config: dict[str, Any]) -> torch.Tensor:
    """Return the mean of one parameter's gradients, in DeepSpeed's order of operations, written out."""
    ranks = len(addends)
    before = 1.0 / (ranks if config.get("prescale_gradients") else config.get("gradient_predivide_factor", 1.0))
    dtype = ROUND[config.get("communication_data_type", "fp32")]
    total = (addends[0].to(dtype) * before) + (addends[1].to(dtype) * before)
    return (total / (ranks * before)).to(addends[0].dtype)


def _batch(replica: int) -> torch.Tensor:
    """Return the token ids of a replica, each of another shape: every replica has its own batch."""
    return tokens(replica, samples=2 + replica)[:, : 12 - 4 * replica]


def gradients(rank: int, configs: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return, for each config, the largest differences of the averaged gradients: from the formula, from the mean."""
    found = []
    for config in configs:
        model = build()
        addends = []
        for replica in range(2):
            unsharded = copy.deepcopy(model)
            ids = _batch(replica)
            unsharded(input_ids=ids, labels=ids).loss.backward()
            addends.append({name: parameter.grad for name, parameter in unsharded.named_parameters()})
        settings = {"tensor_parallel": {"autotp_size": 1}, "optimizer": {"type": "SGD"}, **config}
        engine, *_ = initialize(model=model, config={"train_micro_batch_size_per_gpu": 2, **settings})
        ids = _batch(rank)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        formula = mean = 0.0
        for name, parameter in engine.module.named_parameters():
            first, second = addends[0][name], addends[1][name]
            formula = max(formula, float((parameter.grad - _expected([first, second], config)).abs().max()))
            mean = max(mean, float((parameter.grad - (first + second) / 2).abs().max()))
        found.append({"formula": formula, "mean": mean})
    return found


def sums(rank: int) -> float:
    """Return the largest difference of a gradient from the sum over the ranks (`gradient_allreduce_op`)."""
    model = build()
    unsharded = copy.deepcopy(model)
    for replica in range(2):
        ids = tokens(replica)
        unsharded(input_ids=ids, labels=ids).loss.backward()
    config = {"tensor_parallel": {"autotp_size": 1}, "optimizer": {"type": "SGD"}, "gradient_allreduce_op": "sum"}
    engine, *_ = initialize(model=model, config={"train_micro_batch_size_per_gpu": 2, **config})
    ids = tokens(rank)
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    expected = dict(unsharded.named_parameters())
    return max(
        float((parameter.grad - expected[name].grad).abs().max())
        for name, parameter in engine.module.named_parameters()
    )


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.levelname, record.getMessage()))


def logged(rank: int) -> list[tuple[str, str]]:
    """Return what `initialize` logs for OpenRLHF's batch sizes, a monitor and ZeRO, over one data-parallel rank."""
    config = {
        "train_batch_size": 4,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 2},
        "tensorboard": {"enabled": True},
        "steps_per_print": float("inf"),
        "tensor_parallel": {"autotp_size": 2},
    }
    log, handler = logging.getLogger("tpinit"), _Lines()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        engine, *_ = initialize(model=build(), config=config)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert engine.gradient_accumulation_steps() == 4
    assert engine.zero_optimization_stage() == 2
    return [line for line in handler.lines if line[1].startswith("config: ")]


def let_go(rank: int) -> dict[str, float]:
    """Drop the engine and keep the model, then drop the model too."""
    model = build()
    unsharded = copy.deepcopy(model)
    config = {"tensor_parallel": {"autotp_size": 1}, "train_micro_batch_size_per_gpu": 2}
    module = initialize(model=model, config=config)[0].module
    del model
    gc.collect()
    for replica in range(2):
        ids = tokens(replica)
        unsharded(input_ids=ids, labels=ids).loss.div(2).backward()
    ids = tokens(rank)
    module(input_ids=ids, labels=ids).loss.backward()
    pairs = zip(module.parameters(), unsharded.parameters(), strict=True)
    gap = max(float((one.grad - other.grad).abs().max()) for one, other in pairs)
    held = [weakref.ref(parameter) for parameter in module.parameters()]
    del module, pairs
    gc.collect()
    return {"gap": gap, "held": sum(one() is not None for one in held), "parameters": len(held)}


def freed(rank: int) -> list[str]:
    """Train and pickle a sharded model, drop it, and return what of it is still there."""
    config = {"tensor_parallel": {"autotp_size": 2}, "optimizer": {"type": "SGD"}, "train_micro_batch_size_per_gpu": 2}
    engine, ids = initialize(model=build(), config=config)[0], tokens()
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    pickle.loads(pickle.dumps(engine.module))
    held = {"engine": engine, "model": engine.module, "optimizer": engine.optimizer, **dict(engine.named_parameters())}
    alive = {name: weakref.ref(one) for name, one in held.items()}
    del engine, held
    gc.collect()
    return [name for name, one in alive.items() if one() is not None]
