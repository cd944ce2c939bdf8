"""Process groups as users pass them: mpus, meshes, and groups of their own."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import init_device_mesh
from tpinit.runtime import tp_model_init


class Mpu:
    """An mpu with DeepSpeed's six methods over given groups; without `dp`, with the three of the model side."""

    def __init__(self, tp: Any, dp: Any = None) -> None:
        self.get_model_parallel_group = lambda: tp
        self.get_model_parallel_rank = lambda: dist.get_rank(tp)
        self.get_model_parallel_world_size = lambda: dist.get_world_size(tp)
        if dp is not None:
            self.get_data_parallel_group = lambda: dp
            self.get_data_parallel_rank = lambda: dist.get_rank(dp)
            self.get_data_parallel_world_size = lambda: dist.get_world_size(dp)


class MegatronMpu:
    """Megatron's names, as its parallel_state module has them."""

    def __init__(self, tp: Any, dp: Any) -> None:
        self.get_tensor_model_parallel_group = lambda: tp
        self.get_data_parallel_group = lambda: dp


def my_group(groups: list[list[int]], rank: int) -> Any:
    """Make all groups on every rank and return this rank's own."""
    made = [(ranks, dist.new_group(ranks)) for ranks in groups]
    return next((group for ranks, group in made if rank in ranks), dist.GroupMember.NON_GROUP_MEMBER)


def tp_and_dp_groups(tp: int, strided: bool) -> tuple[list[list[int]], list[list[int]]]:
    """Return the TP and DP groups of the world: TP neighbours, or TP by stride."""
    world = dist.get_world_size()
    runs = [list(range(first, first + tp)) for first in range(0, world, tp)]
    strides = [list(range(first, world, world // tp)) for first in range(world // tp)]
    if strided:
        return strides, [list(ranks) for ranks in zip(*strides, strict=True)]
    return runs, [list(ranks) for ranks in zip(*runs, strict=True)]


def group_arguments(source: str, model: nn.Module, tp: int, rank: int, config: dict[str, Any]) -> dict[str, Any]:
    """Return what to pass to `initialize` so that the TP group comes from `source`; may call tp_model_init."""
    strided = source.endswith("strided")
    kind = source.removesuffix("-strided")
    tp_groups, dp_groups = tp_and_dp_groups(tp, strided)
    section = {"autotp_size": tp}
    if kind == "created":
        return {"config": {**config, "tensor_parallel": section}}
    if kind == "created-from-call":
        tp_model_init(model, tp, "fp32")
        return {"config": {**config, "tensor_parallel": {}}}
    if kind == "mpu":
        mpu = Mpu(my_group(tp_groups, rank), my_group(dp_groups, rank))
        return {"config": {**config, "tensor_parallel": section}, "mpu": mpu}
    if kind == "mpu-without-dp":
        return {"config": {**config, "tensor_parallel": section}, "mpu": Mpu(my_group(tp_groups, rank))}
    if kind == "megatron-call":
        tp_model_init(model, tp, torch.float32)
        return {"config": config, "mpu": MegatronMpu(my_group(tp_groups, rank), my_group(dp_groups, rank))}
    if kind == "call-group":
        tp_model_init(model, tp, torch.float32, tp_group=my_group(tp_groups, rank))
        return {"config": config}
    if kind == "call-group-and-section":
        tp_model_init(model, tp, torch.float32, tp_group=my_group(tp_groups, rank))
        return {"config": {**config, "tensor_parallel": section}}
    if kind == "call-and-mpu-and-section":
        tp_model_init(model, tp, torch.float32)
        mpu = Mpu(my_group(tp_groups, rank), my_group(dp_groups, rank))
        return {"config": {**config, "tensor_parallel": {}}, "mpu": mpu}
    if kind == "config-group":
        inside = {**section, "tp": {"tp_group": my_group(tp_groups, rank)}}
        return {"config": {**config, "tensor_parallel": inside}}
    if kind == "mesh":
        world = dist.get_world_size()
        shape, names = ((tp, world // tp), ("tensor_parallel", "dp")) if strided else ((world // tp, tp), ("dp", "tp"))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        return {"config": {**config, "tensor_parallel": section}, "mesh_param": mesh}
    if kind == "row2":
        return {"config": config, "mpu": Mpu(my_group(tp_groups, rank), my_group(dp_groups, rank))}
    raise AssertionError(source)
