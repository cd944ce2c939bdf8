"""Fits one region: tries the possible shardings, and takes the first one that passes the dry run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from tpinit.runtime.planning.analysis.fake_forward import run_fake_forward
from tpinit.runtime.planning.build import PlanningTask
from tpinit.runtime.planning.check.dry_run import check_shards, recorded_calls
from tpinit.runtime.planning.partition.attempts import (
    counts_a_group,
    cut_attempts,
    fused_sizes_note,
    no_sharding_reason,
)
from tpinit.runtime.planning.partition.feature_parameters import feature_parameters
from tpinit.runtime.planning.partition.regions import BlockPatch, Region, ShardMismatch
from tpinit.runtime.planning.partition.shard_maps import RegionSharding
from tpinit.runtime.planning.requests.request import LayerRequest

__all__ = ["NeedsDryRun", "fit_region", "likeliest_sharding"]


class NeedsDryRun(Exception):
    """The likeliest patch of a block may change more than it must: only a dry run decides what it needs."""


def likeliest_sharding(
    task: PlanningTask, region: Region, requests: Mapping[str, LayerRequest]
) -> tuple[RegionSharding, BlockPatch]:
    """Return the sharding and the patch that `fit_region` tries first, without a dry run.

    Raises ShardMismatch if no sharding fits the sizes, and NeedsDryRun if the block's patch may be larger than needed.
    """
    attempts = _attempts(task, region, requests, {})
    attempt = next(attempts, None)
    if attempt is None:
        raise ShardMismatch(f"{no_sharding_reason(region, task.linears, task.tp_size)}{fused_sizes_note(requests)}")
    sharding, patch = attempt
    if patch.needs_block or patch.feature_parameters:
        raise NeedsDryRun
    return sharding, patch


def fit_region(
    task: PlanningTask, region: Region, requests: Mapping[str, LayerRequest]
) -> tuple[RegionSharding, BlockPatch]:
    """Return the first sharding of a region that passes the dry run, with the smallest patch of the block that does.

    `requests` are the requests for the region's layers. If they name fused parts, only shardings that shard each part
    by itself are tried. Raises ShardMismatch, with the reason of the first attempt, if no sharding passes.
    """
    first_error: ShardMismatch | None = None
    shapes = _argument_shapes(task, region.block) if region.is_attention else {}
    for sharding, patch in _attempts(task, region, requests, shapes):
        try:
            check_shards(task, [(region, sharding, patch)], stop_early=True)
        except ShardMismatch as error:
            first_error = first_error or error
            continue
        return sharding, _smallest_patch(task, region, sharding, patch)
    reason = first_error or no_sharding_reason(region, task.linears, task.tp_size)
    raise ShardMismatch(f"{reason}{fused_sizes_note(requests)}") from first_error


def _attempts(
    task: PlanningTask,
    region: Region,
    requests: Mapping[str, LayerRequest],
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[RegionSharding, BlockPatch]]:
    features = feature_parameters(task.model, region, task.linears, task.trace)
    return cut_attempts(task.model, region, task.linears, task.tp_size, requests, shapes, features)


def _smallest_patch(task: PlanningTask, region: Region, sharding: RegionSharding, patch: BlockPatch) -> BlockPatch:
    """Return the patch without the changes that the dry run does not need, removed one by one."""
    for field in ("head_arguments", "head_outputs", "attributes"):
        for change in getattr(patch, field):
            if field == "attributes" and counts_a_group(change[0]):
                continue
            others = tuple(other for other in getattr(patch, field) if other != change)
            smaller = replace(patch, **{field: others})
            try:
                check_shards(task, [(region, sharding, smaller)], stop_early=True)
            except ShardMismatch:
                continue
            patch = smaller
    return patch


def _argument_shapes(task: PlanningTask, block: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the floating-point tensors that a block is called with, by keyword or position."""
    shapes: dict[str, tuple[int, ...]] = {}

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name, value in [*((str(position), value) for position, value in enumerate(args)), *kwargs.items()]:
            if hasattr(value, "shape") and value.is_floating_point():
                shapes.setdefault(name, tuple(value.shape))

    trace, next_call = task.trace, recorded_calls()
    handle = task.model.get_submodule(block).register_forward_pre_hook(record, with_kwargs=True)
    try:
        run_fake_forward(
            task.model,
            task.inputs,
            lambda linear, _: next_call(trace.outputs, linear.name)[1].clone(),
            lambda name, _: next_call(trace.expert_outputs, name)[1].clone(),
            context=trace.context,
        )
    finally:
        handle.remove()
    return shapes
