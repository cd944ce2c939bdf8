"""Builds the plan from the shardings that were found: one record per parameter, sharded layer and patched block."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.linears import LinearInfo, expert_weights
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.partition.experts import ExpertsSharding, fit_experts
from tpinit.runtime.planning.partition.feature_parameters import block_placements
from tpinit.runtime.planning.partition.regions import BlockPatch, CutRegion, Region, ShardMismatch, block_plan
from tpinit.runtime.planning.partition.shard_maps import Placement, RegionSharding, even_shard_map
from tpinit.runtime.planning.partition.standalone import StandaloneShard
from tpinit.runtime.planning.partition.vocabulary import Vocabulary
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest
from tpinit.runtime.planning.schema import BlockPlan, Cut, GradientRule, LayerKind, LayerPlan, ParameterPlan, Plan

__all__ = [
    "PlanDraft",
    "PlanningTask",
    "adapter_of_dropout",
    "build_plan",
    "parameter_plans",
    "plan_error",
    "plan_notes",
]

_NOTED_SIZE = 1 << 14  # a note names a replicated weight of at least so many elements
_NAMES_IN_NOTE = 3
_NO_PARTNER = "it can only be sharded together with the layers that feed it or read it, and not all of those are"


@dataclass(frozen=True, slots=True)
class PlanningTask:
    """What planning one model reads: the model, its trace on `inputs` (forward keyword arguments), and the request.

    `linears` are the model's linear layers by module name. `request` None leaves the choice of layers to the data flow.
    `head_names` are the names of the output heads. `blocked` are the modules that must stay replicated, each with the
    reason.
    """

    model: nn.Module
    inputs: Mapping[str, Any]
    trace: Trace
    linears: Mapping[str, LinearInfo]
    request: PlanRequest | None
    tp_size: int
    head_names: tuple[str, ...]
    blocked: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class PlanDraft:
    """The records of a plan so far.

    `placements` are by the id of a parameter. `partial_gradients` are the names of the replicated parameters whose
    gradient is partial on every rank. `reasons` says, by module name, why a module stays replicated.
    """

    placements: dict[int, Placement] = field(default_factory=dict)
    layers: list[LayerPlan] = field(default_factory=list)
    blocks: list[BlockPlan] = field(default_factory=list)
    partial_gradients: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)


def build_plan(
    task: PlanningTask,
    draft: PlanDraft,
    regions: Sequence[CutRegion],
    standalone: Sequence[StandaloneShard],
    vocabulary: Vocabulary,
    tp_rank: int,
) -> Plan:
    """Return the plan of the given regions, standalone layers and vocabulary, and of the experts that are requested.

    `draft` comes with the reasons that are known so far and receives all records.
    """
    for region, sharding, patch in regions:
        _add_region(task, draft, region, sharding, patch)
    for shard in standalone:
        _add_standalone(draft, shard, task.linears[shard.name].module)
    _add_experts(task, draft)
    _add_vocabulary(draft, vocabulary, task.tp_size)
    _mark_partial_gradients(task.trace, draft, regions)
    draws_random = _layers_around_dropout(task, regions)
    fused_with = _fused_columns(task.trace, draft.layers)
    layers = tuple(
        replace(layer, draws_random=layer.module in draws_random, fused_with=fused_with.get(layer.module, ""))
        for layer in draft.layers
    )
    parameters = tuple(parameter_plans(task.model, draft))
    return Plan(
        task.tp_size,
        tp_rank,
        parameters,
        layers,
        tuple(draft.blocks),
        task.request.source if task.request is not None else "structure",
        plan_notes(parameters, draft.reasons, task.request),
    )


def _add_region(
    task: PlanningTask, draft: PlanDraft, region: Region, sharding: RegionSharding, patch: BlockPatch
) -> None:
    for name in region.columns:
        linear, shard_map = task.linears[name], sharding.columns[name]
        draft.placements[id(linear.module.weight)] = Placement(Cut.COLUMN, linear.out_dim, shard_map)
        bias = getattr(linear.module, "bias", None)
        if bias is not None:
            draft.placements[id(bias)] = Placement(Cut.COLUMN, 0, shard_map)
        # The gradient of a shared output is all-reduced at the layer that computes it, once for all of its readers.
        draft.layers.append(LayerPlan(name, LayerKind.COLUMN, reduce_input_grad=name not in region.fed_by_shared))
    for name in region.rows:
        linear = task.linears[name]
        draft.placements[id(linear.module.weight)] = Placement(Cut.ROW, 1 - linear.out_dim, sharding.row)
        draft.layers.append(LayerPlan(name, LayerKind.ROW))
    draft.layers += [LayerPlan(name, LayerKind.SHARED_OUTPUT) for name in region.shared_outputs]
    block = task.model.get_submodule(region.block)
    for path, placement in block_placements(block, region, sharding, patch, task.tp_size):
        draft.placements[id(block.get_parameter(path))] = placement
    if patch.needs_block:
        draft.blocks.append(block_plan(region.block, sharding, patch))
    prefix = f"{region.block}." if region.block else ""
    draft.partial_gradients.update(f"{prefix}{name}.weight" for name in patch.head_outputs)


def _add_standalone(draft: PlanDraft, shard: StandaloneShard, module: nn.Module) -> None:
    """Shard the weight of a layer without a partner, and the bias too if the layer is column-parallel."""
    column = shard.kind is LayerKind.COLUMN_GATHER
    draft.placements[id(module.weight)] = Placement(Cut.COLUMN if column else Cut.ROW, shard.dim, shard.shard_map)
    bias = getattr(module, "bias", None)
    if column and bias is not None:
        draft.placements[id(bias)] = Placement(Cut.COLUMN, 0, shard.shard_map)
    draft.layers.append(LayerPlan(shard.name, shard.kind, shard.shard_map.slices))


def _add_experts(task: PlanningTask, draft: PlanDraft) -> None:
    """Shard every requested block of experts that can be; blocks of one type and one set of shapes are fitted once."""
    fits: dict[tuple[Any, ...], ExpertsSharding | ShardMismatch] = {}
    for name, module in task.trace.context.experts.items():
        if name in task.blocked:
            continue
        if task.request is not None and not task.request.layers.get(name, LayerRequest()).experts:
            continue
        key = (type(module), *(tuple(parameter.shape) for parameter in module.parameters()))
        if key not in fits:
            try:
                fits[key] = fit_experts(module, task.tp_size)
            except ShardMismatch as error:
                fits[key] = error
        fit = fits[key]
        if isinstance(fit, ShardMismatch):
            owners = (_owner(f"{name}.{weight}") for weight in expert_weights(module))
            draft.reasons.update(dict.fromkeys(owners, str(fit)))
            continue
        for parameter, placement in fit.placements.items():
            draft.placements[id(module.get_parameter(parameter))] = placement
        draft.layers.append(LayerPlan(name, LayerKind.EXPERTS))
        draft.partial_gradients.update(f"{name}.{parameter}" for parameter in fit.first_rank_only)
        if fit.attributes or fit.first_rank_only:
            draft.blocks.append(BlockPlan(name, attributes=fit.attributes, first_rank_only=fit.first_rank_only))


def _add_vocabulary(draft: PlanDraft, vocabulary: Vocabulary, tp_size: int) -> None:
    for _, parameter in vocabulary.parameters:
        placement = Placement(Cut.VOCABULARY, 0, even_shard_map(parameter.shape[0], tp_size))
        draft.placements.setdefault(id(parameter), placement)
    for name, kind, size in vocabulary.layers:
        draft.layers.append(LayerPlan(name, kind, even_shard_map(size, tp_size).slices))


def _mark_partial_gradients(trace: Trace, draft: PlanDraft, regions: Sequence[CutRegion]) -> None:
    """Mark the parameters that are applied to sharded features: each rank computes a partial gradient of them."""
    sharded = {name for region, _, _ in regions for name in (*region.columns, *region.shared_outputs)}
    draft.partial_gradients.update(name for name, reaching in trace.reach_parameter.items() if reaching & sharded)


_REDUCES_INPUT_GRAD = (LayerKind.COLUMN, LayerKind.COLUMN_GATHER, LayerKind.HEAD)


def _fused_columns(trace: Trace, layers: Sequence[LayerPlan]) -> dict[str, str]:
    """Return, for each column-parallel layer of a fused group, the first layer of its group.

    A group shares one all-reduce of the gradient of its input. It consists of the layers of one block that read one
    tensor, the same layers in every call, where no block of experts reads that tensor too. It never spans two blocks of
    a stack (the cross attentions of decoder layers): activation checkpointing runs each block again for itself.
    """
    columns = {layer.module for layer in layers if layer.kind in _REDUCES_INPUT_GRAD and layer.reduce_input_grad}
    experts = {layer.module for layer in layers if layer.kind is LayerKind.EXPERTS}
    groups: dict[str, set[tuple[str, ...]]] = {}
    for readers in trace.reader_groups:
        group = tuple(name for name in readers if name in columns)
        called_once = len(set(group)) == len(group)
        for name in group:
            block = tuple(other for other in group if _block(other) == _block(name))
            groups.setdefault(name, set()).add(block if called_once and not experts.intersection(readers) else ())
    group_of = {name: next(iter(found)) for name, found in groups.items() if len(found) == 1}
    return {
        name: group[0]
        for name, group in group_of.items()
        if group and all(group_of.get(other) == group for other in group)
    }


def _block(name: str) -> str:
    """Return the innermost block of a stack that a module belongs to, `layers.0` of `layers.0.mlp.up`; else ""."""
    found = re.match(r"(.*\.\d+)\.", name)
    return found.group(1) if found is not None else ""


def _layers_around_dropout(task: PlanningTask, regions: Sequence[CutRegion]) -> set[str]:
    """Return the layers of the regions inside which dropout masks are drawn in training."""
    layers: set[str] = set()
    for region, _, _ in regions:
        if task.trace.reach_dropout.intersection(region.columns):
            layers.update(region.columns, region.rows)
    return layers


def adapter_of_dropout(name: str, module: nn.Module) -> str | None:
    """Return the layer of peft to whose adapter a dropout belongs, by name; None for any other module."""
    adapter, found, _ = name.rpartition(".lora_dropout")
    return adapter if found and isinstance(module, nn.Dropout) and module.p else None


def parameter_plans(model: nn.Module, draft: PlanDraft) -> Iterator[ParameterPlan]:
    """Yield the record of every parameter of the model, in the model's order; tied parameters have one record."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    for parameter in model.parameters():
        names, shape = tuple(names_of[id(parameter)]), tuple(parameter.shape)
        placement = draft.placements.get(id(parameter))
        if placement is None:
            rule = GradientRule.PARTIAL if draft.partial_gradients & set(names) else GradientRule.REPLICATED
            owners = [_owner(name) for name in names]
            reason = next((draft.reasons[owner] for owner in owners if owner in draft.reasons), "")
            yield ParameterPlan(names, shape, Cut.REPLICATED, None, rule, reason=reason)
        else:
            shard_map = placement.shard_map
            yield ParameterPlan(
                names,
                shape,
                placement.cut,
                placement.dim,
                GradientRule.PARTIAL if shard_map.overlaps else GradientRule.SHARDED,
                shard_map.unit or 1,
                shard_map.fused_sizes,
                () if shard_map.unit else shard_map.slices,
            )


def _owner(parameter: str) -> str:
    """Return the name of the module that holds a parameter."""
    return parameter.rpartition(".")[0]


def plan_notes(
    parameters: Sequence[ParameterPlan], reasons: Mapping[str, str], request: PlanRequest | None
) -> tuple[str, ...]:
    """Return the notes of a plan: which parts of the request have no effect, and which weights stay replicated and why.

    `reasons` is by module name.
    """
    return (*_request_notes(request), *_replication_notes(parameters, reasons, request))


def _request_notes(request: PlanRequest | None) -> Iterator[str]:
    if request is None:
        return
    if request.unmatched_patterns:
        yield f"no module matches {', '.join(request.unmatched_patterns)} of {request.source}"
    if request.unknown_styles:
        yield f"{request.source} has unknown styles, which are ignored: {', '.join(request.unknown_styles)}"
    yield from request.notes


def _replication_notes(
    parameters: Sequence[ParameterPlan], reasons: Mapping[str, str], request: PlanRequest | None
) -> Iterator[str]:
    """Yield one note per reason: which weights stay replicated for it, if they are large or a user requested them."""
    layers = request.layers if request is not None else {}
    requested = {name for name, layer in layers.items() if layer.is_sharded}
    by_user = requested if request is not None and request.from_user else set()
    names_by_reason: dict[str, list[str]] = {}
    for record in parameters:
        owner = _owner(record.name)
        noted = math.prod(record.shape) >= _NOTED_SIZE or owner in by_user
        if len(record.shape) > 1 and noted and record.dim is None:
            reason = reasons.get(owner, _NO_PARTNER if owner in requested else "no rule shards it")
            names_by_reason.setdefault(reason, []).append(record.name)
    for reason, names in names_by_reason.items():
        more = f" and {len(names) - _NAMES_IN_NOTE} more" if len(names) > _NAMES_IN_NOTE else ""
        yield f"replicated: {', '.join(names[:_NAMES_IN_NOTE])}{more}: {reason}"


def plan_error(problems: Sequence[tuple[str, str]], tp_size: int) -> PlanError:
    """Return one error for all problems, each a pair of a name and a reason; names with one reason share a line."""
    names_by_reason: dict[str, list[str]] = {}
    for name, reason in problems:
        names_by_reason.setdefault(reason, []).append(name)
    lines = [f"this model can't be sharded over {tp_size} ranks:"]
    lines += [f"  {', '.join(names)}: {reason}" for reason, names in names_by_reason.items()]
    return PlanError("\n".join(lines), (name for name, _ in problems))
