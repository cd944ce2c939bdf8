"""Fitting the regions that a source request for: those that are alike, alike; then all of them together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.fake_forward import in_mode
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.build import PlanDraft, PlanningTask
from tpinit.runtime.planning.check.dry_run import check_shards
from tpinit.runtime.planning.check.fit import NeedsDryRun, fit_region, likeliest_cut
from tpinit.runtime.planning.partition.regions import BlockPatch, CutRegion, Region, ShardMismatch, candidate_regions
from tpinit.runtime.planning.partition.shard_maps import RegionSharding
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest

__all__ = ["fit_regions", "unreached_twins"]


def fit_regions(task: PlanningTask, draft: PlanDraft) -> list[CutRegion]:
    """Fit all regions at once, as it is likely for each; else one by one, those alike alike; else each on its own.

    Raises PlanError where each fits and all together do not.
    """
    stage = task.trace.context
    with in_mode(task.model, stage.training, stage.modules):
        return _fit_all(task, draft)


def _fit_all(task: PlanningTask, draft: PlanDraft) -> list[CutRegion]:
    # Most regions fit as is likely: then one rehearsal of all of them is the proof for each.
    with suppress(NeedsDryRun, ShardMismatch):
        return _together(task, _fit_each(task, draft, rehearsing=False, alike=True))
    with suppress(ShardMismatch):
        return _together(task, _fit_each(task, draft, rehearsing=True, alike=True))
    fitted = _fit_each(task, draft, rehearsing=True, alike=False)
    try:
        return _together(task, fitted)
    except ShardMismatch as error:
        raise PlanError(
            f"this model can't be cut over {task.tp_size} ranks: each of its blocks can, but together they "
            f"compute something else: {error}"
        ) from error


def _together(task: PlanningTask, fitted: list[CutRegion]) -> list[CutRegion]:
    """Return the regions, if the ranks compute their parts with all of them cut. Raises Mismatch."""
    called = [one for one in fitted if one[0].rows[0] in task.trace.inputs]
    if called:
        check_shards(task.model, task.inputs, task.trace, called, task.tp_size)
    return fitted


def _fit_each(task: PlanningTask, draft: PlanDraft, rehearsing: bool, alike: bool) -> list[CutRegion]:
    """Fit every region that is wished for, the heaviest first; each as is likely where it is not rehearsed.

    Raises Unsure, only where it is not.
    """
    model, inputs, seen, matrices = task.model, task.inputs, task.trace, task.linears
    known: dict[tuple[Any, ...], tuple[RegionSharding, BlockPatch] | ShardMismatch] = {}
    fitted: list[CutRegion] = []
    taken: set[str] = set()
    for region in candidate_regions(matrices, seen, task.head_names):
        names = (*region.columns, *region.rows)
        if taken.intersection(names) or not _wished(region, task.request):
            continue
        fused = _fused(region, task.request)
        key = (*_likeness(model, region, matrices), *fused.values()) if alike else (region.rows,)
        if key not in known:
            try:
                if rehearsing:
                    known[key] = fit_region(model, inputs, seen, region, matrices, task.tp_size, fused)
                else:
                    known[key] = likeliest_cut(model, region, matrices, task.tp_size, fused)
            except ShardMismatch as error:
                known[key] = error
        found = known[key]
        if isinstance(found, ShardMismatch):
            draft.reasons.update(dict.fromkeys(names, str(found)))
            continue
        layout, adaptation = found
        fitted.append((region, _renamed(layout, region), adaptation))
        taken.update(names)
    return fitted + unreached_twins(model, fitted, matrices, seen)


def _wished(region: Region, request: PlanRequest | None) -> bool:
    if request is None:
        return True
    columns = [request.layers.get(name, LayerRequest()) for name in region.columns]
    rows = [request.layers.get(name, LayerRequest()) for name in region.rows]
    adapters = [".lora_" in name for name in (*region.columns, *region.rows)]
    if any(adapters):  # the adapters of a layer follow it
        return True
    if request.from_user and any(style.standalone for style in (*columns, *rows)):
        return False
    return all(style.column for style in columns) and all(style.row for style in rows)


def _fused(region: Region, request: PlanRequest | None) -> dict[str, LayerRequest]:
    """Return what a source says of the matrices of a region, and so of the parts that are fused in each."""
    styles = request.layers if request is not None else {}
    return {name: styles.get(name, LayerRequest()) for name in (*region.columns, *region.rows)}


def _likeness(model: nn.Module, region: Region, matrices: Mapping[str, LinearInfo]) -> tuple[Any, ...]:
    """Return what two regions have in common that can be fitted alike: the block's type and numbers, and shapes."""
    block = model.get_submodule(region.block)
    start = len(region.block) + 1 if region.block else 0
    shapes = tuple(
        (name[start:], matrices[name].in_features, matrices[name].out_features)
        for name in (*region.columns, *region.rows)
    )
    numbers = tuple(
        sorted((name, one) for name, one in vars(block).items() if type(one) is int and "layer" not in name)
    )
    inside = tuple(sorted(name for name, _ in block.named_modules()))
    return type(block), shapes, len(region.columns), region.is_attention, numbers, inside


def _renamed(layout: RegionSharding, region: Region) -> RegionSharding:
    """Return the layout of a region that was fitted under the names of another that is like it."""
    if set(layout.columns) == set(region.columns):
        return layout
    spreads = list(layout.columns.values())
    return RegionSharding(dict(zip(region.columns, spreads, strict=True)), layout.row, layout.heads)


def unreached_twins(
    model: nn.Module, fitted: Sequence[CutRegion], matrices: Mapping[str, LinearInfo], seen: Trace
) -> list[CutRegion]:
    """Return the regions of blocks that the small batch did not reach, like one that it did (experts in a list)."""

    def pattern(name: str) -> str:
        return re.sub(r"\d+", "*", name)

    known = {(pattern(one[0].block), type(model.get_submodule(one[0].block))): one for one in fitted}
    reached = {one[0].block for one in fitted}
    found = []
    for name, module in model.named_modules():
        like = known.get((pattern(name), type(module)))
        if like is None or name in reached:
            continue
        region, layout, adaptation = like
        columns = tuple(name + one[len(region.block) :] for one in region.columns)
        rows = tuple(name + one[len(region.block) :] for one in region.rows)
        if any(one not in matrices or one in seen.sources for one in (*columns, *rows)):
            continue
        alike = all(
            matrices[mine].out_features == matrices[theirs].out_features
            and matrices[mine].in_features == matrices[theirs].in_features
            for mine, theirs in zip((*columns, *rows), (*region.columns, *region.rows), strict=True)
        )
        if alike and not region.shared_outputs:
            spreads = {mine: layout.columns[theirs] for mine, theirs in zip(columns, region.columns, strict=True)}
            twin = Region(name, columns, rows, (), region.is_attention)
            found.append((twin, RegionSharding(spreads, layout.row, layout.heads), adaptation))
    return found
