"""Writing a plan down: what was fitted becomes one record a parameter, a layer and a block, with notes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.linears import LinearInfo, expert_weights
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.partition.experts import ExpertsSharding, fit_experts
from tpinit.runtime.planning.partition.regions import BlockPatch, CutRegion, Region, ShardMismatch, block_plan
from tpinit.runtime.planning.partition.shard_maps import RegionSharding, ShardMap, even_shard_map, per_head_shard_map
from tpinit.runtime.planning.partition.standalone import StandaloneShard
from tpinit.runtime.planning.partition.vocabulary import Vocabulary
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest
from tpinit.runtime.planning.schema import BlockPlan, Cut, GradientRule, LayerKind, LayerPlan, ParameterPlan, Plan

__all__ = ["PlanDraft", "PlanningTask", "plan_notes", "parameter_plans", "plan_error", "build_plan"]

_BIG = 1 << 14  # elements of a replicated weight that is worth a note
_NO_PARTNER = "it can only be cut together with layers that read it, or that it reads, and not with those that are"


@dataclass(frozen=True, slots=True)
class PlanningTask:
    """What the regions of a model are fitted to."""

    model: nn.Module
    inputs: Mapping[str, Any]
    trace: Trace
    linears: Mapping[str, LinearInfo]
    request: PlanRequest | None
    tp_size: int
    head_names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """How a parameter lies over the group."""

    cut: Cut
    dim: int
    shard_map: ShardMap


@dataclass(slots=True)
class PlanDraft:
    """A plan in the making."""

    placements: dict[int, Placement] = field(default_factory=dict)
    layers: list[LayerPlan] = field(default_factory=list)
    blocks: list[BlockPlan] = field(default_factory=list)
    partial_gradients: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)


def build_plan(
    task: PlanningTask,
    draft: PlanDraft,
    fitted: Sequence[CutRegion],
    alone: Sequence[StandaloneShard],
    head: Vocabulary,
    tp_rank: int,
) -> Plan:
    """Write down the plan of what was fitted: regions, matrices cut on their own, experts, and the vocabulary."""
    model, seen, matrices, request, tp_size = task.model, task.trace, task.linears, task.request, task.tp_size
    for region, layout, adaptation in fitted:
        _draft_region(model, region, layout, adaptation, matrices, draft)
    for one in alone:
        _draft_alone(one, matrices[one.name].module, draft)
    _draft_experts(task, draft)
    _draft_vocabulary(head, tp_size, draft)
    _mark_inner(seen, draft, fitted)
    random = _randomised(model, seen, fitted, tp_size)
    fused_column_groups = _doors(seen, draft.layers)
    draft.layers = [
        replace(layer, draws_random=layer.module in random, fused_with=fused_column_groups.get(layer.module, ""))
        for layer in draft.layers
    ]
    source = request.source if request is not None else "structure"
    parameters = tuple(parameter_plans(model, draft))
    return Plan(
        tp_size,
        tp_rank,
        parameters,
        tuple(draft.layers),
        tuple(draft.blocks),
        source,
        plan_notes(parameters, draft.reasons, request),
    )


def _draft_region(
    model: nn.Module,
    region: Region,
    layout: RegionSharding,
    adaptation: BlockPatch,
    linears: Mapping[str, LinearInfo],
    draft: PlanDraft,
) -> None:
    for name in region.columns:
        matrix, spread = linears[name], layout.columns[name]
        draft.placements[id(matrix.module.weight)] = Placement(Cut.COLUMN, matrix.out_dim, spread)
        bias = getattr(matrix.module, "bias", None)
        if bias is not None:
            draft.placements[id(bias)] = Placement(Cut.COLUMN, 0, spread)
        # What a shared matrix gives collects its gradient where it leaves that matrix: once, for all readers.
        draft.layers.append(LayerPlan(name, LayerKind.COLUMN, reduce_input_grad=name not in region.fed_by_shared))
    for name in region.rows:
        matrix = linears[name]
        draft.placements[id(matrix.module.weight)] = Placement(Cut.ROW, 1 - matrix.out_dim, layout.row)
        draft.layers.append(LayerPlan(name, LayerKind.ROW))
    draft.layers += [LayerPlan(name, LayerKind.SHARED_OUTPUT) for name in region.shared_outputs]
    block = model.get_submodule(region.block)
    for name in adaptation.head_parameters:
        assert layout.heads is not None
        parameter = block.get_parameter(name)
        spread = per_head_shard_map(parameter.shape[0], layout.heads, len(layout.heads.slices))
        draft.placements[id(parameter)] = Placement(Cut.COLUMN, 0, spread)
    if adaptation != BlockPatch(head_parameters=adaptation.head_parameters):
        draft.blocks.append(block_plan(region.block, layout, adaptation))
    for name in adaptation.head_outputs:
        draft.partial_gradients.add(f"{region.block}.{name}.weight" if region.block else f"{name}.weight")


def _draft_alone(one: StandaloneShard, module: nn.Module, draft: PlanDraft) -> None:
    """Cut one matrix on its own: of a gathered column the bias too, of a split row the weight alone."""
    column = one.kind is LayerKind.COLUMN_GATHER
    draft.placements[id(module.weight)] = Placement(Cut.COLUMN if column else Cut.ROW, one.dim, one.shard_map)
    bias = getattr(module, "bias", None)
    if column and bias is not None:
        draft.placements[id(bias)] = Placement(Cut.COLUMN, 0, one.shard_map)
    draft.layers.append(LayerPlan(one.name, one.kind, one.shard_map.slices))


def _mark_inner(seen: Trace, draft: PlanDraft, fitted: Sequence[CutRegion]) -> None:
    """Mark the parameters that meet features which are cut: each rank has a part of their gradient."""
    cut = {name for region, _, _ in fitted for name in (*region.columns, *region.shared_outputs)}
    for name, met in seen.reach_parameter.items():
        if met & cut:
            draft.partial_gradients.add(name)


_ENTERING = (LayerKind.COLUMN, LayerKind.COLUMN_GATHER, LayerKind.HEAD)


def _doors(seen: Trace, layers: Sequence[LayerPlan]) -> dict[str, str]:
    """Return, for each column layer that goes into the group by a fused_with, the first of those that do so together.

    Those are the columns that read one tensor, the same ones in every call, beside no block of experts.
    """
    columns = [layer.module for layer in layers if layer.kind in _ENTERING and layer.reduce_input_grad]
    experts = {layer.module for layer in layers if layer.kind is LayerKind.EXPERTS}
    entering = set(columns)
    found: dict[str, set[tuple[str, ...]]] = {}
    for readers in seen.reader_groups:
        together = tuple(name for name in readers if name in entering)
        for name in together:
            single = len(set(together)) == len(together) and not experts.intersection(readers)
            found.setdefault(name, set()).add(together if single else ())
    alike = {name: next(iter(every)) for name, every in found.items() if len(every) == 1}
    return {
        name: together[0]
        for name, together in alike.items()
        if all(alike.get(one) == together for one in together) and together
    }


def _draft_experts(task: PlanningTask, draft: PlanDraft) -> None:
    request, tp_size = task.request, task.tp_size
    known: dict[tuple[Any, ...], ExpertsSharding | ShardMismatch] = {}
    for name, module in task.trace.context.experts.items():
        if request is not None and not request.layers.get(name, LayerRequest()).experts:
            continue
        key = (type(module), *(tuple(one.shape) for one in module.parameters()))
        if key not in known:
            try:
                known[key] = fit_experts(module, tp_size)
            except ShardMismatch as error:
                known[key] = error
        found = known[key]
        if isinstance(found, ShardMismatch):
            draft.reasons.update({f"{name}.{one}".rpartition(".")[0]: str(found) for one in expert_weights(module)})
            continue
        for parameter, (cut, dim, spread) in found.placements.items():
            draft.placements[id(module.get_parameter(parameter))] = Placement(cut, dim, spread)
        draft.layers.append(LayerPlan(name, LayerKind.EXPERTS))
        draft.partial_gradients.update(f"{name}.{parameter}" for parameter in found.first_rank_only)
        if found.attributes or found.first_rank_only:
            draft.blocks.append(BlockPlan(name, attributes=found.attributes, first_rank_only=found.first_rank_only))


def _draft_vocabulary(head: Vocabulary, tp_size: int, draft: PlanDraft) -> None:
    for name, parameter in head.parameters:
        if id(parameter) not in draft.placements:
            draft.placements[id(parameter)] = Placement(Cut.VOCABULARY, 0, even_shard_map(parameter.shape[0], tp_size))
        del name
    for name, kind, size in head.layers:
        draft.layers.append(LayerPlan(name, kind, even_shard_map(size, tp_size).slices))


def parameter_plans(model: nn.Module, draft: PlanDraft) -> Iterator[ParameterPlan]:
    """Yield the record of every parameter of the model, in its order, tied ones once."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for _, parameter in model.named_parameters():
        shape, tied = tuple(parameter.shape), tuple(names[id(parameter)])
        lie = draft.placements.get(id(parameter))
        if lie is None:
            rule = GradientRule.PARTIAL if draft.partial_gradients & set(tied) else GradientRule.REPLICATED
            why = next((draft.reasons[one] for one in _owners(tied) if one in draft.reasons), "")
            yield ParameterPlan(tied, shape, Cut.REPLICATED, None, rule, reason=why)
        else:
            spread = lie.shard_map
            rule = GradientRule.PARTIAL if spread.overlaps else GradientRule.SHARDED
            slices = () if spread.unit else spread.slices
            yield ParameterPlan(tied, shape, lie.cut, lie.dim, rule, spread.unit or 1, spread.fused_sizes, slices)


def _owners(names: Sequence[str]) -> list[str]:
    return [name.rpartition(".")[0] for name in names]


def plan_notes(
    parameters: Sequence[ParameterPlan], why: Mapping[str, str], request: PlanRequest | None
) -> tuple[str, ...]:
    """Return what of a plan needs words: what a source says in vain, and what stays whole; `why` is by module."""
    return tuple(_notes(parameters, why, request))


def _notes(parameters: Sequence[ParameterPlan], said: Mapping[str, str], request: PlanRequest | None) -> Iterator[str]:
    if request is not None:
        if request.unmatched_patterns:
            yield f"nothing in the model matches {', '.join(request.unmatched_patterns)} of {request.source}"
        if request.unknown_styles:
            yield f"{request.source} has unknown styles, which are ignored: {', '.join(request.unknown_styles)}"
        yield from request.notes
    reasons: dict[str, list[str]] = {}
    wished = {name for name, style in request.layers.items() if style.is_sharded} if request is not None else set()
    for record in parameters:
        name, owner = record.name, record.name.rpartition(".")[0]
        told = math.prod(record.shape) >= _BIG or (request is not None and request.from_user and owner in wished)
        if len(record.shape) > 1 and told and record.dim is None:
            why = said.get(owner, _NO_PARTNER if owner in wished else "no rule cuts it")
            reasons.setdefault(why, []).append(name)
    for why, found in reasons.items():
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        yield f"whole on every rank: {', '.join(found[:3])}{more}: {why}"


def _randomised(model: nn.Module, seen: Trace, fitted: Sequence[CutRegion], tp_size: int) -> set[str]:
    """Return the matrices of regions inside which a model in training drops out.

    Raises PlanError where adapters of such a region drop out too: their dropout is outside, and drawn in between.
    """
    found: set[str] = set()
    problems = []
    for region, _, _ in fitted:
        if seen.reach_dropout.intersection(region.columns):
            found.update(region.columns, region.rows)
            block = model.get_submodule(region.block)
            problems += [
                (f"{region.block}.{name}", "dropout of an adapter beside dropout on cut features; set one of them to 0")
                for name, one in block.named_modules()
                if "lora_dropout" in name and isinstance(one, nn.Dropout) and one.p
            ]
    if problems:
        raise plan_error(problems, tp_size)
    return found


def plan_error(problems: Sequence[tuple[str, str]], tp_size: int) -> PlanError:
    """Return the error that tells all problems at once: (name, reason) each, names with one reason together."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in problems:
        by_reason.setdefault(reason, []).append(name)
    lines = [f"this model can't be cut over {tp_size} ranks:"]
    for reason, names in by_reason.items():
        lines.append(f"  {', '.join(names)}: {reason}")
    return PlanError("\n".join(lines), (name for name, _ in problems))
