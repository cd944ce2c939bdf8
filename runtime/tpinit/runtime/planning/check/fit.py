"""Fits one region: tries the ways to cut it, and keeps the first one that the dry run confirms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from tpinit.runtime.planning.analysis.fake_forward import run_fake_forward
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.check.dry_run import check_shards, replay
from tpinit.runtime.planning.partition.attempts import block_sizes_note, cut_attempts, no_sharding_reason
from tpinit.runtime.planning.partition.regions import BlockPatch, Region, ShardMismatch
from tpinit.runtime.planning.partition.shard_maps import RegionSharding
from tpinit.runtime.planning.requests.request import LayerRequest

__all__ = ["NeedsDryRun", "fit_region", "likeliest_cut"]


class NeedsDryRun(Exception):
    """What is likely for a region has something that it may do without."""


def likeliest_cut(
    model: nn.Module,
    region: Region,
    matrices: Mapping[str, LinearInfo],
    tp_size: int,
    fused: Mapping[str, LayerRequest],
) -> tuple[RegionSharding, BlockPatch]:
    """Return the cut that `fit_region` tries first, without a dry run.

    Raises ShardMismatch if no sharding fits the sizes, and NeedsDryRun if the block's patch may be larger than needed.
    """
    found = next(cut_attempts(model, region, matrices, tp_size, fused, {}), None)
    if found is None:
        raise ShardMismatch(f"{no_sharding_reason(region, matrices, tp_size)}{block_sizes_note(fused)}")
    layout, adaptation = found
    if adaptation != BlockPatch(head_parameters=adaptation.head_parameters):
        raise NeedsDryRun
    return layout, adaptation


def fit_region(
    model: nn.Module,
    inputs: Mapping[str, Any],
    seen: Trace,
    region: Region,
    matrices: Mapping[str, LinearInfo],
    tp_size: int,
    fused: Mapping[str, LayerRequest],
) -> tuple[RegionSharding, BlockPatch]:
    """Return the first layout, and adaptation of the block, with which the rehearsal of a region succeeds.

    `fused` has what a source says of the parts that are fused in a matrix: only layouts that cut those are tried.
    Raises Mismatch, with what the likeliest attempt ended in.
    """
    first: ShardMismatch | None = None
    shapes = _argument_shapes(model, inputs, seen, region) if region.is_attention else {}
    for layout, adaptation in cut_attempts(model, region, matrices, tp_size, fused, shapes):
        try:
            check_shards(model, inputs, seen, [(region, layout, adaptation)], tp_size, only=True)
        except ShardMismatch as error:
            first = first or error
            continue
        return layout, _least(model, inputs, seen, region, layout, adaptation, tp_size)
    raise ShardMismatch(f"{first or no_sharding_reason(region, matrices, tp_size)}{block_sizes_note(fused)}") from first


def _least(
    model: nn.Module,
    inputs: Mapping[str, Any],
    seen: Trace,
    region: Region,
    layout: RegionSharding,
    adaptation: BlockPatch,
    tp_size: int,
) -> BlockPatch:
    """Leave out of an adaptation, one by one, what the rehearsal succeeds without."""
    for field in ("head_arguments", "head_outputs", "attributes"):
        for one in getattr(adaptation, field):
            less = replace(adaptation, **{field: tuple(other for other in getattr(adaptation, field) if other != one)})
            try:
                check_shards(model, inputs, seen, [(region, layout, less)], tp_size, only=True)
            except ShardMismatch:
                continue
            adaptation = less
    return adaptation


def _argument_shapes(
    model: nn.Module, inputs: Mapping[str, Any], seen: Trace, region: Region
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the floating-point tensors that a block is called with, by name or place."""
    found: dict[str, tuple[int, ...]] = {}

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for name, value in [*((str(place), one) for place, one in enumerate(args)), *kwargs.items()]:
            if hasattr(value, "shape") and value.is_floating_point():
                found.setdefault(name, tuple(value.shape))

    again = replay()
    handle = model.get_submodule(region.block).register_forward_pre_hook(look, with_kwargs=True)
    try:
        run_fake_forward(
            model,
            inputs,
            lambda one, _: again(seen.outputs, one.name)[1].clone(),
            lambda name, _: again(seen.expert_outputs, name)[1].clone(),
            context=seen.context,
        )
    finally:
        handle.remove()
    return found
