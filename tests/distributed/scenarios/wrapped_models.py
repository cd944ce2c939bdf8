"""Models that are wrapped, initialized in part, or without values are refused by `initialize` on all ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from tpinit.runtime import initialize

from scenarios.engine import config
from support.refusals import in_step, refusal_of
from support.tiny_models import build


def distributed() -> Any:
    model: Any = build()
    layer = model.model.layers[0].mlp.down_proj
    mesh = init_device_mesh("cpu", (2,))
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(1)]))
    return model


def in_part() -> Any:
    model: Any = build()
    initialize(model=model, config=config())
    return nn.ModuleDict({"inner": model})


def half_meta() -> Any:
    model: Any = build()
    model.model.norm.to("meta")
    return model


MODELS = {
    "ddp": lambda: nn.parallel.DistributedDataParallel(build()),
    "fsdp": lambda: fully_shard(build()),
    "dtensor": distributed,
    "compiled": lambda: torch.compile(build(), backend="eager"),
    "meta": lambda: build().to("meta"),
    "half meta": half_meta,
    "engine": lambda: initialize(model=build(), config=config())[0],
    "in part": in_part,
}


def refuse(rank: int) -> dict[str, tuple[str, bool]]:
    results = {}
    for case, make in MODELS.items():
        model: Any = make()
        results[case] = (refusal_of(partial(initialize, model=model, config=config())), in_step(rank))
    return results
