"""Devices, time-outs and the end of an engine, on real ranks."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime import initialize
from tpinit.runtime.groups import device_check
from tpinit.runtime.groups.agreement import RankReport
from tpinit.runtime.groups.process_groups import GroupView, ParallelGroups, free_groups
from tpinit.runtime.init.apply import apply_plan
from tpinit.runtime.internals.torch_private import timeout_of
from tpinit.runtime.planning import make_plan

from support.refusals import error_of, in_step, refusal_of
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


def destroyed(rank: int, folder: str) -> dict[str, Any]:
    engine, other = started(), started()
    batch = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "labels": torch.tensor([[1, 2, 3, 4]])}
    engine.backward(engine(**batch).loss)
    engine.step()
    engine.destroy()
    engine.destroy()
    other.backward(other(**batch).loss)  # another engine goes on
    made = dist.new_group([0, 1])
    dist.barrier(made)  # torch returns a group on one rank while the other still connects
    view = GroupView((0, 1), rank, made)
    free_groups(ParallelGroups(view, view, 0, (made,)))
    return {
        "forward": refusal_of(lambda: engine(**batch)),
        "module": refusal_of(lambda: engine.module(**batch)),
        "step": refusal_of(engine.step),
        "save": refusal_of(lambda: engine.save_checkpoint(folder)),
        "load": refusal_of(lambda: engine.load_checkpoint(folder)),
        "files": refusal_of(lambda: engine.module.save_pretrained(folder)),
        "written": bool(os.listdir(folder)),
        "freed": error_of(lambda: dist.get_process_group_ranks(made))["type"] is not None,
        "world": dist.is_initialized(),
    }


def exchanged(rank: int) -> dict[str, Any]:
    """Devices go through the store of the world; no collective is needed."""
    own = {"kind": "cuda", "identity": f"GPU-{rank}", "choice": f"cuda:{rank}"}
    different = device_check._exchange(RankReport(replica=own))
    same = device_check._exchange(RankReport(replica={**own, "identity": "GPU-0"}))
    return {
        "different": refusal_of(lambda: device_check._check_devices(different)),
        "same": refusal_of(lambda: device_check._check_devices(same)),
    }


def batches_elsewhere(rank: int) -> dict[str, Any]:
    """Batches on the meta device, in place of a GPU's model and a batch on the CPU."""
    engine = started()
    ids = torch.tensor([[1, 2, 3, 4]])
    there = {"input_ids": ids.to("meta"), "labels": ids.to("meta")}
    found = {
        "ids": refusal_of(lambda: engine(**there)),
        "module": refusal_of(lambda: engine.module(**there)),
        "one rank": refusal_of(lambda: engine(**(there if rank else {"input_ids": ids, "labels": ids}))),
        "mask": refusal_of(lambda: engine(input_ids=ids, attention_mask=torch.ones(1, 1, 4, 4, device="meta"))),
        "unread": refusal_of(lambda: engine(input_ids=ids, return_dict=True, labels=ids)),
    }
    return {**found, "in step": in_step(rank)}


def one_rank_stays_away(rank: int) -> dict[str, Any]:
    """Rank 0 calls the model alone, in a world whose time-out is 40 seconds; the engine's is 3."""
    engine = started(timeout=3)
    ids = torch.tensor([[1, 2, 3, 4]])
    begin = time.monotonic()
    text = refusal_of(lambda: engine(input_ids=ids)) if rank == 0 else ""
    return {"text": text, "seconds": time.monotonic() - begin, "in step": in_step(rank)}


def on_meta(rank: int) -> dict[str, Any]:
    """A sharded model on the meta device: its operations are counted, and nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build()
    plan = replace(make_plan(model, 2, {}), tp_rank=rank)
    counts = []
    for shard in (False, True):
        one = copy.deepcopy(model).to("meta")
        if shard:
            apply_plan(one, plan, dist.group.WORLD, None, torch.device("meta"))
        ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
        mask = torch.zeros(2, 1, 8, 8, device="meta")  # transformers reads values to make one
        with FlopCounterMode(display=False) as counter:
            loss = one(input_ids=ids, attention_mask=mask, labels=ids).loss
            loss.backward()
        counts.append(counter.get_total_flops())
        gradients = [parameter.grad for parameter in one.parameters()]
        assert all(grad is not None and grad.is_meta for grad in gradients)
    return {"whole": counts[0], "part": counts[1]}
