"""ZeRO over data-parallel ranks: weights of stages 1 and 2 beside those of stage 0, and who has which state."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import Engine, initialize

from support.collectives import CollectiveCounter
from support.refusals import error_of, in_step
from support.tiny_models import build, tokens


def _config(stage: int, tp_size: int, optimizer: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
        "zero_optimization": {"stage": stage},
        "tensor_parallel": {"autotp_size": tp_size},
        "optimizer": optimizer,
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 3}},
    }


def _trained(stage: int, tp_size: int, optimizer: dict[str, Any], extra: dict[str, Any]) -> tuple[Engine, list[float]]:
    engine, *_ = initialize(model=build(), config={**_config(stage, tp_size, optimizer), **extra})
    norms = []
    for number in range(8):
        ids = tokens(10 * number + engine.groups.data_index)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
        norms.append(engine.get_global_grad_norm() or 0.0)
    return engine, norms


def _held(engine: Engine) -> list[bool]:
    """Return, for each parameter, whether this rank's optimizer has a state of it."""
    assert engine.optimizer is not None
    keys = [key for group in engine.optimizer.param_groups for key in group["params"]]
    states = [engine.optimizer.state.get(key, {}) for key in keys]
    return [any(name.startswith(("exp_avg", "momentum")) for name in state) for state in states]


def stages(rank: int, tp_size: int, optimizer: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Train 4 updates of every stage; return the differences from stage 0, and who has the states."""
    plain, norms = _trained(0, tp_size, optimizer, extra)
    found: dict[str, Any] = {}
    for stage in (1, 2):
        engine, other_norms = _trained(stage, tp_size, optimizer, extra)
        held: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(held, (engine.groups.tp.position, _held(engine)))
        found[str(stage)] = {
            "difference": _furthest(plain, engine),
            "norms": max(abs(one / other - 1) for one, other in zip(norms[1:], other_norms[1:], strict=True)),
            "stage": engine.zero_optimization_stage(),
            "holders": [
                [sum(has) for has in zip(*(has for position, has in held if position == place), strict=True)]
                for place in range(tp_size)
            ],
            "rates": engine.get_lr() == plain.get_lr(),
        }
    return {"found": found, "in_step": in_step(rank)}


def _furthest(engine: Engine, other: Engine) -> float:
    pairs = zip(engine.module.parameters(), other.module.parameters(), strict=True)
    return max(float((one - two).abs().max()) for one, two in pairs)


def resumed(rank: int, folder: str, extra: dict[str, Any]) -> dict[str, Any]:
    """Save under stage 1, load into stages 1, 0 and 2, train on; return what differs from the run that went on.

    The run of stage 2 is saved too, and stage 0 loads that.
    """
    optimizer = {"type": "AdamW", "params": {"lr": 1e-2}}
    saved, _ = _trained(1, 1, optimizer, extra)
    before = _held(saved)
    saved.save_checkpoint(folder)
    after = _held(saved)
    others = []
    for stage in (1, 0, 2):
        config = {**_config(stage, 1, optimizer), **extra}
        engine, *_ = initialize(model=build(seed=5), config=config)
        engine.load_checkpoint(folder)
        others.append(engine)
    for engine in (saved, *others):
        for number in range(4):
            ids = tokens(100 + 10 * number + engine.groups.data_index)
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            engine.step()
    last = others.pop()
    last.save_checkpoint(f"{folder}-2")
    again, *_ = initialize(model=build(seed=6), config={**_config(0, 1, optimizer), **extra})
    again.load_checkpoint(f"{folder}-2")
    return {
        "equal": [_furthest(saved, engine) == 0 for engine in others],
        "stage 2": (_furthest(saved, last), _furthest(last, again), sum(_held(last)), sum(_held(again))),
        "dropped": before == after,
        "held": [sum(_held(engine)) for engine in (saved, *others)],
        "in_step": in_step(rank),
    }


def added(rank: int) -> dict[str, Any]:
    """Freeze a parameter, add it to the optimizer later, and raise in a step; the ranks stay equal."""
    model = build()
    first = next(model.parameters())
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one is not first], lr=0.1)
    config = {"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 1}}
    engine, *_ = initialize(model=model, optimizer=optimizer, config={**config, "tensor_parallel": {"autotp_size": 1}})
    for number in range(3):
        if number == 1:
            optimizer.add_param_group({"params": [next(engine.module.parameters())], "lr": 0.01})
        ids = tokens(10 * number + rank)
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        counter = CollectiveCounter()
        with counter.on():
            engine.step()
    weights = torch.cat([one.detach().reshape(-1) for one in engine.module.parameters()])
    other = weights.clone()
    dist.broadcast(other, src=0)
    return {"equal": torch.equal(weights, other), "calls": [name for name, *_ in counter.calls].count("broadcast")}


def refused(rank: int) -> dict[str, Any]:
    """Ask for ZeRO with an optimizer that needs whole matrices."""
    config = {"zero_optimization": {"stage": 1}, "tensor_parallel": {"autotp_size": 2}}
    return error_of(lambda: initialize(model=build(), config={**config, "optimizer": {"type": "Adafactor"}}))
