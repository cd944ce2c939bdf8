"""Initialization with the probe, by a plan that is right and by plans that were broken after they were checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize

from families import catalogue
from support.family_training import SGD


def initialize_with_probe(rank: int, name: str, break_with: str = "", **overrides: Any) -> dict[str, Any]:
    """Initialize with the probe; return its error. `break_with` breaks the plan after the dry run has checked it."""
    import tpinit.runtime.init.launch as launch
    from tpinit.reference.errors import TpinitError

    model = catalogue.build(name, **overrides).train()
    before = {key: one.detach().clone() for key, one in model.named_parameters()}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": SGD,
        "tensor_parallel": {"autotp_size": dist.get_world_size()},
    }
    original = launch.prepare

    def broken(*arguments: Any) -> Any:
        ready = original(*arguments)
        layers = ready.plan.layers
        if break_with == "entry":
            layers = tuple(
                replace(one, reduce_input_grad=False, fused_with="") if one.kind.value == "column" else one
                for one in layers
            )
        elif break_with == "sum":
            layers = tuple(one for one in layers if one.kind.value != "experts")
        blocks = ready.plan.blocks
        if break_with == "once":  # so that all ranks add the bias
            blocks = tuple(replace(one, first_rank_only=()) for one in blocks)
        return replace(ready, plan=replace(ready.plan, layers=layers, blocks=blocks))

    launch.prepare = broken
    text = ""
    try:
        initialize(model=model, config=config, verify="probe")
    except TpinitError as error:
        text = f"{type(error).__name__}: {error}"
    finally:
        launch.prepare = original
    same = all(torch.equal(before[key], one) for key, one in model.named_parameters() if one.shape == before[key].shape)
    whole = all(one.shape == before[key].shape for key, one in model.named_parameters())
    return {"text": text, "untouched": same and whole}
