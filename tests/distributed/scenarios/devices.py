"""Devices, time-outs and the end of an engine, on real ranks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.groups import device_check
from tpinit.runtime.groups.process_groups import GroupView, ParallelGroups, free_groups
from tpinit.runtime.internals.torch_private import timeout_of

from support.refusals import error_of, refusal_of
from support.tiny_models import build


def started(**arguments: Any) -> Any:
    config = {"optimizer": {"type": "SGD", "params": {"lr": 0.1}}, "tensor_parallel": {"autotp_size": 2}}
    return initialize(model=build(), config=config, **arguments)[0]


def choice_and_time_outs(rank: int) -> dict[str, Any]:
    world = timeout_of(dist.group.WORLD, "cpu")
    engine, limited = started(), started(timeout=33)
    return {
        "choice": str(engine.device_choice),
        "device": str(engine.device),
        "inherited": timeout_of(engine.groups.tp.control, "cpu") == world,
        "given": timeout_of(limited.groups.tp.control, "cpu") == timedelta(seconds=33),
    }


def destroyed(rank: int) -> dict[str, Any]:
    engine, other = started(), started()
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "labels": torch.tensor([[1, 2, 3, 4]])}
    engine.backward(engine(**batch).loss)
    engine.step()
    engine.destroy()
    engine.destroy()
    other.backward(other(**batch).loss)  # another engine goes on
    made = dist.new_group([0, 1])
    view = GroupView((0, 1), rank, made)
    free_groups(ParallelGroups(view, view, 0, (made,)))
    return {
        "forward": refusal_of(lambda: engine(**batch)),
        "module": refusal_of(lambda: engine.module(**batch)),
        "step": refusal_of(engine.step),
        "freed": error_of(lambda: dist.get_process_group_ranks(made))["type"] is not None,
        "world": dist.is_initialized(),
    }


def exchanged(rank: int) -> dict[str, Any]:
    """Devices go through the store of the world; no collective is needed."""
    own = {"kind": "cuda", "identity": f"GPU-{rank}", "choice": f"cuda:{rank}"}
    different = device_check._exchange(own)
    same = device_check._exchange({**own, "identity": "GPU-0"})
    return {
        "different": refusal_of(lambda: device_check._check_devices(different)),
        "same": refusal_of(lambda: device_check._check_devices(same)),
    }
