"""Ranks that agree, ranks that differ, and inputs that are refused on every rank before anything is sharded."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tpinit.runtime import initialize, tp_model_init
from tpinit.runtime.groups import agreement
from tpinit.runtime.groups.digest import digest_model

from scenarios.refused_inputs import REFUSED_INPUTS, Setup
from scenarios.training import OPTIMIZERS
from support.process_groups import Mpu, my_group
from support.refusals import error_of, in_step
from support.tiny_models import LENGTH, VOCABULARY, build


def initialize_by_row(rank: int, number: int) -> dict[str, Any]:
    """Initialize with inputs of one row of the table, train one step, and return what the engine decided and did."""
    model = build()
    world = dist.get_world_size()
    whole_world = list(range(world))
    tp_groups, dp_groups = [whole_world], [[one] for one in whole_world]
    tpi, tpg, cfg, mpu = number >= 5, number >= 9, (number - 1) % 4 >= 2, (number - 1) % 2 == 1
    if tpi:
        tp_model_init(model, world, "bf16", **({"tp_group": my_group(tp_groups, rank)} if tpg else {}))
    config: dict[str, Any] = {"optimizer": OPTIMIZERS["sgd"], "train_micro_batch_size_per_gpu": 1}
    if cfg:
        config["tensor_parallel"] = {"autotp_size": world, "dtype": "bf16"}
    given = {"mpu": Mpu(my_group(tp_groups, rank), my_group(dp_groups, rank))} if mpu else {}
    result: dict[str, Any] = {}

    def call() -> None:
        engine, _, _, _ = initialize(model=model, config=config, **given)
        weights = dict(engine.module.named_parameters())
        result.update(
            row=engine.decision.row,
            outcome=engine.decision.outcome.value,
            source=engine.decision.tp_group.source and engine.decision.tp_group.source.value,
            dtypes=sorted({str(one.dtype) for one in weights.values()}),
            shape=tuple(weights["model.layers.0.self_attn.q_proj.weight"].shape),
        )
        ids = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
        engine.backward(engine(input_ids=ids, labels=ids).loss)
        engine.step()
        result["steps"] = engine.global_steps

    result["error"] = error_of(call)
    result["untouched"] = tuple(model.get_parameter("model.layers.0.self_attn.q_proj.weight").shape) == (32, 32)
    return result


def initialize_refused(rank: int, case: str) -> dict[str, Any]:
    """Initialize with inputs that must be refused; return the error, and whether model and config are unchanged."""
    world = dist.get_world_size()
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": OPTIMIZERS["sgd"],
        "tensor_parallel": {"autotp_size": world},
    }
    setup = Setup(rank, world, config, build())
    REFUSED_INPUTS[case](setup)
    model = setup.model
    before = digest_model(model) if isinstance(model, nn.Module) and case != "meta" else None
    config_before = copy.deepcopy(setup.config)
    error = error_of(lambda: initialize(model=model, config=setup.config, **setup.arguments))
    return {
        **error,
        "untouched": (before is None or before == digest_model(model)) and config_before == setup.config,
        "collective": in_step(rank),
    }


def exchange_reports(rank: int, same: bool) -> dict[str, Any]:
    """Exchange reports that are the same on all ranks, or not; return them and how much was gathered each time."""
    texts, tensors, gathered = dist.all_gather_object, dist.all_gather, []

    def gather_text(into: list[Any], one: Any, group: Any = None) -> None:
        texts(into, one, group=group)
        gathered.append(len(one))

    def gather_tensor(into: list[torch.Tensor], one: torch.Tensor, group: Any = None) -> None:
        tensors(into, one, group=group)
        gathered.append(one.nbytes)

    dist.all_gather_object, dist.all_gather = gather_text, gather_tensor
    try:
        reports = agreement.gather_reports(
            agreement.RankReport({"a long list": list(range(1000)), "own": 0 if same else rank})
        )
    finally:
        dist.all_gather_object, dist.all_gather = texts, tensors
    return {"own": [one.fields["own"] for one in reports], "lengths": gathered}
