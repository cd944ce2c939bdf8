"""Finds the sharding of every requested region, and checks all regions together in one dry run per rank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.fake_forward import in_mode
from tpinit.runtime.planning.build import PlanDraft, PlanningTask
from tpinit.runtime.planning.check.dry_run import check_shards
from tpinit.runtime.planning.check.fit import NeedsDryRun, fit_region, likeliest_sharding
from tpinit.runtime.planning.partition.regions import BlockPatch, CutRegion, Region, ShardMismatch, candidate_regions
from tpinit.runtime.planning.partition.shard_maps import RegionSharding
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest

__all__ = ["fit_regions", "reached_regions", "unreached_regions"]


def fit_regions(task: PlanningTask, draft: PlanDraft) -> list[CutRegion]:
    """Return the requested regions that can be sharded exactly. The reasons for the others go into `draft.reasons`.

    Tries the cheapest way first: the likeliest sharding of every region; then one dry run per kind of region; then one
    dry run per region. Each result is accepted after a dry run of all regions together.

    Raises PlanError if every region passes a dry run but all of them together do not.
    """
    context = task.trace.context
    with in_mode(task.model, context.training, context.modules):
        with suppress(NeedsDryRun, ShardMismatch):
            return _check_together(task, _fit_each(task, draft, with_dry_run=False, fit_similar_once=True))
        with suppress(ShardMismatch):
            return _check_together(task, _fit_each(task, draft, with_dry_run=True, fit_similar_once=True))
        regions = _fit_each(task, draft, with_dry_run=True, fit_similar_once=False)
        try:
            return _check_together(task, regions)
        except ShardMismatch as error:
            raise PlanError(
                f"this model can't be sharded over {task.tp_size} ranks: each of its blocks can, but with all of them "
                f"sharded the ranks compute something else: {error}"
            ) from error


def reached_regions(task: PlanningTask, regions: Sequence[CutRegion]) -> list[CutRegion]:
    """Return the regions that the forward of the trace reached."""
    return [region for region in regions if region[0].rows[0] in task.trace.inputs]


def _check_together(task: PlanningTask, regions: list[CutRegion]) -> list[CutRegion]:
    """Return the regions if they pass a dry run with all of them sharded. Raises ShardMismatch."""
    reached = reached_regions(task, regions)
    if reached:
        check_shards(task, reached)
    return regions


def _fit_each(task: PlanningTask, draft: PlanDraft, *, with_dry_run: bool, fit_similar_once: bool) -> list[CutRegion]:
    """Fit every requested region, the one with the most weights first; a layer belongs to one region at most.

    Without a dry run every region gets its likeliest sharding, and NeedsDryRun is raised if that one is not certain.
    """
    fit = fit_region if with_dry_run else likeliest_sharding
    fits: dict[tuple[Any, ...], tuple[RegionSharding, BlockPatch] | ShardMismatch] = {}
    regions: list[CutRegion] = []
    taken: set[str] = set()
    for region in candidate_regions(task.linears, task.trace, task.head_names):
        names = (*region.columns, *region.rows)
        if taken.intersection(names) or not _is_requested(region, task.request):
            continue
        blocked = [task.blocked[name] for name in names if name in task.blocked]
        blocked += [f"{name}: {task.trace.kept[name]}" for name in region.columns if name in task.trace.kept]
        inside = f"{region.block}." if region.block else ""
        blocked += [
            f"the forward of {reader or type(task.model).__qualname__} reads values of a tensor in Python"
            for reader in sorted(task.trace.value_readers)
            if f"{reader}.".startswith(inside)
        ]
        if blocked:
            draft.reasons.update(dict.fromkeys(names, blocked[0]))
            continue
        requests = _requests_for(region, task.request)
        key = (*_similarity(task, region), *requests.values()) if fit_similar_once else (region.rows,)
        if key not in fits:
            try:
                fits[key] = fit(task, region, requests)
            except ShardMismatch as error:
                fits[key] = error
        found = fits[key]
        if isinstance(found, ShardMismatch):
            draft.reasons.update(dict.fromkeys(names, str(found)))
            continue
        sharding, patch = found
        regions.append((region, _with_names_of(region, sharding), patch))
        taken.update(names)
    return regions + unreached_regions(task, regions)


def _is_requested(region: Region, request: PlanRequest | None) -> bool:
    """Return whether a request shards all layers of a region, each in the way that the region needs."""
    if request is None:
        return True
    names = (*region.columns, *region.rows)
    if any(".lora_" in name for name in names):  # no request names adapters: they follow the layer that they adapt
        return True
    requests = _requests_for(region, request)
    if request.from_user and any(layer.standalone for layer in requests.values()):
        return False
    return all(requests[name].column for name in region.columns) and all(requests[name].row for name in region.rows)


def _requests_for(region: Region, request: PlanRequest | None) -> dict[str, LayerRequest]:
    """Return the request for each layer of a region; an empty one where there is none."""
    layers = request.layers if request is not None else {}
    return {name: layers.get(name, LayerRequest()) for name in (*region.columns, *region.rows)}


def _similarity(task: PlanningTask, region: Region) -> tuple[Any, ...]:
    """Return a key that is equal for regions that one sharding fits: type and attributes of the block, and shapes."""
    block = task.model.get_submodule(region.block)
    start = len(region.block) + 1 if region.block else 0
    shapes = tuple(
        (name[start:], task.linears[name].in_features, task.linears[name].out_features)
        for name in (*region.columns, *region.rows)
    )
    attributes = tuple(
        sorted((name, value) for name, value in vars(block).items() if type(value) is int and "layer" not in name)
    )
    modules = tuple(sorted(name for name, _ in block.named_modules()))
    parameters = tuple((name, tuple(parameter.shape)) for name, parameter in block.named_parameters())
    return type(block), shapes, len(region.columns), region.is_attention, attributes, modules, parameters


def _with_names_of(region: Region, sharding: RegionSharding) -> RegionSharding:
    """Return the sharding, which was found for a similar region, with the column names of this region."""
    if set(sharding.columns) == set(region.columns):
        return sharding
    columns = dict(zip(region.columns, sharding.columns.values(), strict=True))
    return RegionSharding(columns, sharding.row, sharding.heads)


def unreached_regions(task: PlanningTask, regions: Sequence[CutRegion]) -> list[CutRegion]:
    """Return regions for blocks that the trace did not reach: those like the block of a region but for their index.

    They are experts in a list: one small batch uses only a few of them.
    """
    kinds = {
        (_without_numbers(region.block), type(task.model.get_submodule(region.block))): (region, sharding, patch)
        for region, sharding, patch in regions
    }
    blocks = {region.block for region, _, _ in regions}
    found = []
    for name, module in task.model.named_modules():
        similar = kinds.get((_without_numbers(name), type(module)))
        if similar is None or name in blocks:
            continue
        twin = _twin(task, name, similar)
        if twin is not None:
            found.append(twin)
    return found


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _twin(task: PlanningTask, block: str, similar: CutRegion) -> CutRegion | None:
    """Return the region in `block` that corresponds to a similar one; None if it was reached or has other sizes."""
    region, sharding, patch = similar
    prefix = len(region.block)
    columns = tuple(block + name[prefix:] for name in region.columns)
    rows = tuple(block + name[prefix:] for name in region.rows)
    names = (*columns, *rows)
    if region.shared_outputs or any(name not in task.linears or name in task.trace.sources for name in names):
        return None
    if not task.blocked.keys().isdisjoint(names):
        return None
    for name, other in zip(names, (*region.columns, *region.rows), strict=True):
        own, theirs = task.linears[name], task.linears[other]
        if (own.out_features, own.in_features) != (theirs.out_features, theirs.in_features):
            return None
    by_name = {name: sharding.columns[other] for name, other in zip(columns, region.columns, strict=True)}
    twin = Region(block, columns, rows, (), region.is_attention)
    return twin, RegionSharding(by_name, sharding.row, sharding.heads), patch
