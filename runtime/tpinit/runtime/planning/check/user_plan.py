"""Checks a plan that a user passes to `initialize`: against the model, against its own cuts, and in a dry run.

The plan decides which layers are sharded, and which slices each rank holds. Everything that follows from that (which
gradients are partial, how a block is patched, where gradients are all-reduced) is computed again from the model's trace
and must equal what the plan says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.attachments import find_attachments, global_problems, parameter_type_problems
from tpinit.runtime.planning.analysis.fake_forward import without_hooks
from tpinit.runtime.planning.analysis.linears import find_linears
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.analysis.train_trace import dry_run_inputs, trace_training
from tpinit.runtime.planning.build import PlanDraft, PlanningTask, build_plan
from tpinit.runtime.planning.check.dry_run import check_shards
from tpinit.runtime.planning.check.plan_problems import layer_problems, parameter_problems, plan_differences
from tpinit.runtime.planning.check.search import reached_regions, unreached_regions
from tpinit.runtime.planning.check.sequence_parallel import add_sequence_parallel
from tpinit.runtime.planning.check.visibility import check_records, check_visibility
from tpinit.runtime.planning.partition.feature_parameters import feature_parameters
from tpinit.runtime.planning.partition.regions import BlockPatch, CutRegion, Region, ShardMismatch, candidate_regions
from tpinit.runtime.planning.partition.shard_maps import HeadSharding, RegionSharding, ShardMap
from tpinit.runtime.planning.partition.standalone import StandaloneShard
from tpinit.runtime.planning.partition.vocabulary import Vocabulary, find_vocabulary
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest
from tpinit.runtime.planning.schema import BlockPlan, LayerKind, ParameterPlan, Plan

__all__ = ["check_plan", "rebuilt_plan"]

_STANDALONE = (LayerKind.COLUMN_GATHER, LayerKind.ROW_SPLIT)
_PROBLEMS_SHOWN = 20
_NAMES_SHOWN = 5


def check_plan(plan: Plan, model: nn.Module, tp_size: int, example: Mapping[str, Any] | None = None) -> Plan:
    """Return the plan, for rank 0, if it is a plan of this model over `tp_size` ranks that passes the dry run.

    `example` are keyword arguments of one small forward, for models whose inputs their config does not describe.

    Raises PlanError with every problem that is found: names, shapes and ties that are not the model's, another TP size,
    slices that are out of range or do not cover a parameter, layers that can't be sharded that way, records that do not
    follow from the plan's own cuts, and a dry run that differs from the unsharded model.
    """
    if plan.tp_size != tp_size:
        raise PlanError(f"the plan is for a TP size of {plan.tp_size}, and {tp_size} was decided: plan again")
    _raise_problems([*parameter_problems(plan, model), *layer_problems(plan, model)])
    if tp_size > 1:
        check_records(plan, model)
        _raise_problems([f"{name}: {text}" for name, text in (*parameter_type_problems(model), *global_problems())])
        attachments = find_attachments(model)
        inputs = dry_run_inputs(model, example)
        if inputs is None:
            raise PlanError(
                f"a plan is checked in a dry run, and a {type(model).__qualname__} has no transformers config that "
                "describes its inputs: give a small batch of keyword arguments as `example`"
            )
        with without_hooks(model):
            trace = trace_training(model, inputs, attachments.hooked)
            _raise_problems(plan_differences(plan, rebuilt_plan(plan, model, inputs, trace)))
            check_visibility(plan, attachments, trace)
    return replace(plan, tp_rank=0)


def _raise_problems(problems: Sequence[str]) -> None:
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        lines = [*problems[:_PROBLEMS_SHOWN], *([f"and {more} more"] if more > 0 else [])]
        raise PlanError("this plan does not fit this model:\n" + "\n".join(f"  {line}" for line in lines))


def rebuilt_plan(plan: Plan, model: nn.Module, inputs: Mapping[str, Any], trace: Trace) -> Plan:
    """Return the plan that the planner builds from the cuts of `plan`, after a dry run. Raises PlanError."""
    linears = find_linears(model)
    vocabulary = find_vocabulary(model, linears, trace, plan.tp_size)
    kinds = {layer.module: layer.kind for layer in plan.layers if layer.kind is not LayerKind.SHARED_OUTPUT}
    experts = {name: LayerRequest(experts=True) for name, kind in kinds.items() if kind is LayerKind.EXPERTS}
    request = PlanRequest(plan.source, experts, from_user=True)
    task = PlanningTask(model, inputs, trace, linears, request, plan.tp_size, vocabulary.head_names)
    records = {name: record for record in plan.parameters for name in record.names}
    weights = {name: records[f"{name}.weight"] for name in linears}
    replicated = [name for name in kinds if name in weights and weights[name].dim is None]
    if replicated:
        raise PlanError(
            f"the plan has layers whose weights are replicated in it: {', '.join(replicated[:_NAMES_SHOWN])}; "
            "shard the weights or take the layers out"
        )
    regions = _regions(plan, task, kinds, weights, records)
    try:
        reached = reached_regions(task, regions)
        if reached:
            check_shards(task, reached)
    except ShardMismatch as error:
        raise PlanError(f"the plan fails its dry run: {error}") from error
    standalone = [
        StandaloneShard(name, kind, weights[name].dim or 0, _shard_map(weights[name], plan.tp_size))
        for name, kind in kinds.items()
        if kind in _STANDALONE
    ]
    rebuilt = build_plan(task, PlanDraft(), regions, standalone, _sharded_vocabulary(vocabulary, kinds), 0)
    return add_sequence_parallel(task, regions, rebuilt) if plan.sequences else rebuilt


def _regions(
    plan: Plan,
    task: PlanningTask,
    kinds: Mapping[str, LayerKind],
    weights: Mapping[str, ParameterPlan],
    records: Mapping[str, ParameterPlan],
) -> list[CutRegion]:
    """Return the regions that the column-parallel and row-parallel layers of a plan form.

    Raises PlanError if a layer is left over: it is sharded without the layers that must be sharded with it.
    """
    columns = {name for name, kind in kinds.items() if kind is LayerKind.COLUMN}
    rows = {name for name, kind in kinds.items() if kind is LayerKind.ROW}
    regions = []
    for region in candidate_regions(task.linears, task.trace, task.head_names):
        if columns.issuperset(region.columns) and rows.issuperset(region.rows):
            regions.append(_cut_region(region, plan, task, weights, records))
            columns -= set(region.columns)
            rows -= set(region.rows)
    regions += [
        cut_region
        for cut_region in unreached_regions(task, regions)
        if {*cut_region[0].columns, *cut_region[0].rows} <= columns | rows
    ]
    left_over = (columns | rows) - {name for region, _, _ in regions for name in (*region.columns, *region.rows)}
    if left_over:
        raise PlanError(
            f"the plan shards {', '.join(sorted(left_over)[:_NAMES_SHOWN])} without all of the layers that must be "
            "sharded together: the column-parallel layers that a row-parallel layer reads, and every reader of a "
            "column-parallel layer"
        )
    return regions


def _cut_region(
    region: Region,
    plan: Plan,
    task: PlanningTask,
    weights: Mapping[str, ParameterPlan],
    records: Mapping[str, ParameterPlan],
) -> CutRegion:
    """Return a region with the sharding and the block's patch that a plan gives it."""
    blocks = [block for block in plan.blocks if block.module == region.block]
    same_kind = [block for block in blocks if bool(block.num_heads) == region.is_attention]
    block = next(iter([*same_kind, *blocks]), BlockPlan(region.block))
    prefix = f"{region.block}." if region.block else ""
    layers = {layer.module for layer in plan.layers}
    features = tuple(
        parameter
        for parameter in feature_parameters(task.model, region, task.linears, task.trace)
        if records[f"{prefix}{parameter.path}"].dim is not None
    )
    with_features = {parameter.path for parameter in features}
    head_records = {
        name: records[f"{prefix}{name}"]
        for name, _ in task.model.get_submodule(region.block).named_parameters()
        if region.is_attention and name not in with_features and f"{prefix}{name}".rpartition(".")[0] not in layers
    }
    head_parameters = tuple(name for name, record in head_records.items() if record.dim is not None)
    heads = _head_sharding(block, [head_records[name] for name in head_parameters], plan.tp_size)
    columns = {name: _shard_map(weights[name], plan.tp_size) for name in region.columns}
    rows = {_shard_map(weights[name], plan.tp_size) for name in region.rows}
    if len(rows) > 1:
        raise PlanError(f"the plan shards {', '.join(region.rows)} differently, but they have the same input")
    patch = BlockPatch(block.attributes, block.head_arguments, block.head_outputs, head_parameters, features)
    return region, RegionSharding(columns, rows.pop(), heads), patch


def _head_sharding(block: BlockPlan, records: Sequence[ParameterPlan], tp_size: int) -> HeadSharding | None:
    """Return the heads of a block and each rank's, from its record and its parameters with one row per head.

    Returns None if neither counts heads. Raises PlanError if a rank holds several pieces of such a parameter.
    """
    sizes = [record.shape[0] for record in records]
    if not block.num_heads and not sizes:
        return None
    num_heads = block.num_heads or max(sizes)
    num_kv_heads = min([num_heads, *sizes])
    slices_by_size = {}
    for record in records:
        pieces = [record.pieces_of(tp_size, rank) for rank in range(tp_size)]
        if any(len(rank_pieces) != 1 for rank_pieces in pieces):
            raise PlanError(f"{record.name}: each rank must hold one (offset, length) slice of it, not several")
        slices_by_size[record.shape[0]] = [rank_pieces[0] for rank_pieces in pieces]
    head_slices = list(block.head_slices) if block.num_heads else slices_by_size[num_heads]
    kv_slices = slices_by_size.get(num_kv_heads, head_slices)
    return HeadSharding(num_heads, num_kv_heads, tuple(zip(head_slices, kv_slices, strict=True)))


def _shard_map(record: ParameterPlan, tp_size: int) -> ShardMap:
    """Return the shard map of a sharded parameter."""
    slices = tuple(record.pieces_of(tp_size, rank) for rank in range(tp_size))
    if not record.slices:
        return ShardMap(slices, record.unit, record.fused_sizes)
    held = sum(length for rank_slices in slices for _, length in rank_slices)
    return ShardMap(slices, overlaps=record.dim is not None and held > record.shape[record.dim])


def _sharded_vocabulary(vocabulary: Vocabulary, kinds: Mapping[str, LayerKind]) -> Vocabulary:
    """Return the part of a vocabulary that a plan shards: the modules whose weight belongs to a layer of the plan."""
    weights = {
        name.rpartition(".")[0]: id(parameter) for name, parameter in vocabulary.parameters if name.endswith(".weight")
    }
    sharded = {weights[name] for name, _, _ in vocabulary.layers if name in kinds}
    names = {name for name, _, _ in vocabulary.layers if weights[name] in sharded}
    return Vocabulary(
        tuple(layer for layer in vocabulary.layers if layer[0] in names),
        tuple(entry for entry in vocabulary.parameters if entry[0].rpartition(".")[0] in names),
        vocabulary.head_names,
    )
