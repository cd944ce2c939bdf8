"""Sharded models inside of other wrappers, beside each other, and given to initialize again."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from tpinit.runtime import initialize
from tpinit.runtime.internals.wrapper_private import closure_cell
from tpinit.runtime.slicing import local_part

from support.refusals import in_step, refusal_of
from support.tiny_models import build, tokens

STEPS, RATE = 3, 0.1


def _engine(model: Any, tp_size: int, optimizer: bool = False) -> Any:
    config = {
        "tensor_parallel": {"autotp_size": tp_size},
        "gradient_clipping": 0,
        "train_micro_batch_size_per_gpu": 2,
    }
    given = {"optimizer": torch.optim.SGD(model.parameters(), lr=RATE)} if optimizer else {}
    return initialize(model=model, config=config, **given)[0]


def _unsharded(model: Any, replicas: int) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(STEPS):
        for replica in range(replicas):
            ids = tokens(10 * step + replica)
            (model(input_ids=ids, labels=ids).loss / replicas).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def _gap(engine: Any, unsharded: Any) -> float:
    plan = engine.plan
    gaps = []
    for record in plan.parameters:
        whole = unsharded.get_parameter(record.name).detach()
        own = engine.module.get_parameter(record.name).detach()
        gaps.append(float((local_part(whole, record, plan.tp_size, plan.tp_rank) - own).abs().max()))
    return max(gaps)


def _ids(engine: Any, step: int) -> torch.Tensor:
    return tokens(10 * step + engine.groups.data_index)


def data_parallel(rank: int, engine_steps: bool) -> dict[str, Any]:
    """Train a model of TP size 2 inside of DDP over two replicas, by the engine or by hand."""
    engine = _engine(build(), 2, optimizer=engine_steps)
    wrapped = nn.parallel.DistributedDataParallel(engine.module, process_group=engine.groups.dp.group)
    optimizer = torch.optim.SGD(engine.module.parameters(), lr=RATE)
    for step in range(STEPS):
        ids = _ids(engine, step)
        loss = wrapped(input_ids=ids, labels=ids).loss
        if engine_steps:
            engine.backward(loss)
            engine.step()
        else:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return {"gap": _gap(engine, _unsharded(build(), 2)), "alone": _gap(engine, _unsharded(build(), 1))}


def fully_sharded(rank: int, folder: str) -> dict[str, Any]:
    """Apply fully_shard to a sharded model; and once more as a program that imports it after initialize, and use it."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    engine = _engine(build(), 2)
    call = refusal_of(lambda: fully_shard(engine.module, mesh=mesh["dp"]))
    trained = refusal_of(lambda: engine(input_ids=tokens(), labels=tokens()))
    with _unwatched(closure_cell(fully_shard, "func"), "cell_contents"):
        fully_shard(engine.module, mesh=mesh["dp"])
    return {
        "call": call,
        "trained": trained,
        "forward": refusal_of(lambda: engine(input_ids=tokens(), labels=tokens())),
        "state_dict": refusal_of(engine.module.state_dict),
        "save": refusal_of(lambda: engine.module.save_pretrained(folder)),
        "in_step": in_step(rank),
    }


@contextmanager
def _unwatched(holder: Any, name: str) -> Iterator[None]:
    """Take the check away that stands in front of a wrapper of torch."""
    watched = getattr(holder, name)
    setattr(holder, name, watched.tp_original)
    try:
        yield
    finally:
        setattr(holder, name, watched)


def over_the_world(rank: int) -> dict[str, Any]:
    """Put wrappers over all ranks of a TP group around a sharded model, and around another one; and without a check."""
    wrap, mesh = nn.parallel.DistributedDataParallel, init_device_mesh("cpu", (dist.get_world_size(),))
    engine, ids = _engine(build(), dist.get_world_size()), tokens()
    expected = float(build()(input_ids=ids, labels=ids).loss.detach())
    calls: dict[str, Callable[[], Any]] = {
        "model": lambda: wrap(engine.module),
        "engine": lambda: wrap(engine),
        "dp group": lambda: wrap(engine.module, process_group=engine.groups.dp.group),
        "mesh": lambda: wrap(engine.module, device_mesh=mesh),
        "layer": lambda: wrap(engine.module.model.layers[0]),
        "DataParallel": lambda: nn.DataParallel(engine.module),
        "FSDP": lambda: FullyShardedDataParallel(engine.module, device_id=torch.device("cpu")),
        "fully_shard": lambda: fully_shard(engine, mesh=mesh),
        "layers": lambda: fully_shard([*engine.module.model.layers], mesh=mesh),
        "pickled": lambda: pickle.dumps(engine.module.model),
        "saved": lambda: torch.save(engine.module.model, io.BytesIO()),
        "pickled norm": lambda: pickle.dumps(engine.module.model.norm),
    }
    texts = {name: refusal_of(call) for name, call in calls.items()}
    gap = abs(float(engine(input_ids=ids, labels=ids).loss.detach()) - expected)
    averaged = torch.optim.swa_utils.AveragedModel(engine.module)
    same = abs(float(averaged(input_ids=ids, labels=ids).loss.detach()) - expected)
    with _unwatched(wrap, "__init__"):
        wrong = wrap(engine.module)
    found = float(wrong(input_ids=ids, labels=ids).loss.detach())
    wrap(build())
    return {"texts": texts, "gap": gap, "averaged": same, "without": abs(found - expected), "in_step": in_step(rank)}


def two_sizes(rank: int) -> dict[str, Any]:
    """Train models of TP size 2 and 4 in turn in one process, and then by one loss."""
    models = [(build(), 2), (build(seed=1), 4)]
    unsharded = [copy.deepcopy(model) for model, _ in models]
    engines = [_engine(model, size, optimizer=True) for model, size in models]
    for step in range(STEPS):
        for engine in engines:
            ids = _ids(engine, step)
            engine.backward(engine(input_ids=ids, labels=ids).loss)
            engine.step()
    return {
        "gaps": [_gap(engines[0], _unsharded(unsharded[0], 2)), _gap(engines[1], _unsharded(unsharded[1], 1))],
        "in_step": in_step(rank),
    }


def given_again(rank: int) -> dict[str, str]:
    """Give initialize what an earlier initialize has sharded, whole or in part."""
    size = dist.get_world_size()
    model, other, outer = build(), build(seed=1), build()
    engine = _engine(model, size)
    other.model.embed_tokens = model.model.embed_tokens
    _engine(outer.model, size)
    given: dict[str, Callable[[], Any]] = {
        "model": lambda: model,
        "engine": lambda: engine,
        "inner": lambda: model.model,
        "outer": lambda: outer,
        "copy": lambda: copy.deepcopy(model),
        "shared": lambda: other,
    }
    texts = {name: refusal_of(lambda m=make: _engine(m(), size)) for name, make in given.items()}
    third = build(seed=2)
    third.model.norm = model.model.norm
    return {**texts, "replicated": refusal_of(lambda: _engine(third, size))}
