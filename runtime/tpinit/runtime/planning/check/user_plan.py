"""A plan that comes from the user: read, checked against the model, and rehearsed like any other.

Which layers are cut, and how each lies over the ranks, is taken from the plan. What follows from that (whose
gradients are parts, what a block is told, where gradients are collected) is worked out again from the model's
data flow, and must be what the plan says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from torch import nn
from tpinit.reference.spellings import nearest
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.fake_forward import without_hooks
from tpinit.runtime.planning.analysis.linears import find_experts, find_linears
from tpinit.runtime.planning.analysis.train_trace import dry_run_inputs, trace_training
from tpinit.runtime.planning.build import PlanDraft, PlanningTask, build_plan
from tpinit.runtime.planning.check.dry_run import check_shards
from tpinit.runtime.planning.check.search import unreached_twins
from tpinit.runtime.planning.check.sequence_parallel import add_sequence_parallel
from tpinit.runtime.planning.partition.regions import BlockPatch, CutRegion, Region, ShardMismatch, candidate_regions
from tpinit.runtime.planning.partition.shard_maps import HeadSharding, RegionSharding, ShardMap
from tpinit.runtime.planning.partition.standalone import StandaloneShard
from tpinit.runtime.planning.partition.vocabulary import Vocabulary, find_vocabulary
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest
from tpinit.runtime.planning.schema import BlockPlan, Cut, LayerKind, ParameterPlan, Pieces, Plan

__all__ = ["check_plan"]

_ALONE = (LayerKind.COLUMN_GATHER, LayerKind.ROW_SPLIT)


def check_plan(plan: Plan, model: nn.Module, tp_size: int, example: Mapping[str, Any] | None = None) -> Plan:
    """Return the plan, for rank 0, if it is one of this model over `tp_size` ranks that computes the same as the whole.

    Raises PlanError with all that is wrong: names, shapes and ties that are not the model's, another TP size,
    pieces out of range or missing, layers that can't be cut so, and a rehearsal that fails.
    """
    if plan.tp_size != tp_size:
        raise PlanError(f"the plan is for a TP size of {plan.tp_size}, and {tp_size} was decided: plan anew")
    _raise([*_parameter_problems(plan, model), *_layer_problems(plan, model)])
    if tp_size > 1:
        inputs = dry_run_inputs(model, example)
        if inputs is None:
            raise PlanError(
                f"a plan is rehearsed before it is used, and nothing is known of the inputs of a "
                f"{type(model).__qualname__}: give a small batch of keyword arguments as `example`"
            )
        with without_hooks(model):
            _raise(_differences(plan, _again(plan, model, tp_size, inputs)))
    return replace(plan, tp_rank=0)


def _raise(problems: Sequence[str]) -> None:
    if problems:
        shown = [*problems[:20], *([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])]
        raise PlanError("this plan is not one of this model:\n" + "\n".join(f"  {one}" for one in shown))


# --- parameters and layers, each on its own --------------------------------------------------------------


def _parameter_problems(plan: Plan, model: nn.Module) -> Iterator[str]:
    tied: dict[int, list[str]] = {}
    shapes = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
        shapes[name] = tuple(parameter.shape)
    names = {group[0]: tuple(group) for group in tied.values()}
    seen: set[str] = set()
    for record in plan.parameters:
        if not record.names or record.name not in names:
            near = nearest(record.name, names) if record.names else None
            yield f"{record.name if record.names else 'a parameter'}: the model has no such parameter" + (
                f"; did you mean {near}?" if near else ""
            )
            continue
        if record.name in seen:
            yield f"{record.name} is there twice"
        seen.add(record.name)
        if set(record.names) != set(names[record.name]):
            yield f"{record.name}: it is tied as {' = '.join(names[record.name])}, not {' = '.join(record.names)}"
        if record.shape != shapes[record.name]:
            yield f"{record.name}: its shape is {list(shapes[record.name])}, not {list(record.shape)}"
        else:
            yield from (f"{record.name}: {one}" for one in _piece_problems(record, plan.tp_size))
    missing = [name for name in names if name not in seen]
    if missing:
        yield f"it has nothing of {', '.join(missing[:5])}" + (" and more" if len(missing) > 5 else "")


def _piece_problems(record: ParameterPlan, tp_size: int) -> Iterator[str]:
    """Yield what is wrong with the pieces of one parameter: every rank has some, and together they are the whole."""
    if record.dim is None:
        if record.cut is not Cut.REPLICATED or record.slices or record.fused_sizes:
            yield f"it is cut ({record.cut.value}) and has no dim"
        return
    if record.cut is Cut.REPLICATED or not isinstance(record.dim, int) or not 0 <= record.dim < len(record.shape):
        yield f"cut {record.cut.value} along dim {record.dim!r} of {list(record.shape)}"
        return
    length = record.shape[record.dim]
    blocks = record.fused_sizes or (length,)
    if record.slices:
        if len(record.slices) != tp_size or not all(_is_held(held) for held in record.slices):
            yield f"slices must be (offset, length) pairs of {tp_size} ranks"
            return
    elif sum(blocks) != length or record.unit < 1 or any(one % record.unit for one in blocks):
        yield f"fused_sizes {list(blocks)} in units of {record.unit} are not its {length}"
        return
    everything: list[tuple[int, int]] = []
    for rank in range(tp_size):
        end = 0
        for offset, held in record.pieces_of(tp_size, rank):
            if held < 1 or offset < end or offset + held > length:
                yield f"rank {rank} would hold {held} from {offset} of {length}, after {end}"
                return
            end = offset + held
            everything.append((offset, held))
        if not end:
            yield f"rank {rank} would hold nothing"
    reached = 0
    for offset, held in [*sorted(everything), (length, 0)]:
        if offset > reached:
            yield f"no rank holds {reached}:{offset} of its {length}"
        reached = max(reached, offset + held)


def _is_held(held: Any) -> bool:
    return isinstance(held, tuple) and all(
        isinstance(one, tuple) and len(one) == 2 and all(type(number) is int and number >= 0 for number in one)
        for one in held
    )


def _layer_problems(plan: Plan, model: nn.Module) -> Iterator[str]:
    modules = dict(model.named_modules())
    matrices, experts = find_linears(model), find_experts(model)
    legal = {
        LayerKind.EMBEDDING: lambda name: isinstance(modules[name], nn.Embedding),
        LayerKind.EXPERTS: lambda name: name in experts,
        LayerKind.SHARED_OUTPUT: lambda name: name in matrices,
    }
    for layer in plan.layers:
        if layer.module not in modules:
            near = nearest(layer.module, modules)
            yield f"layer {layer.module}: the model has no such module" + (f"; did you mean {near}?" if near else "")
        elif not legal.get(layer.kind, lambda name: name in matrices)(layer.module):
            kind = type(modules[layer.module]).__qualname__
            yield f"layer {layer.module}: a {kind} can't be cut as {layer.kind.value}"
    for block in plan.blocks:
        yield from (f"block {block.module}: {one}" for one in _block_problems(block, modules, plan.tp_size))


def _block_problems(block: BlockPlan, modules: Mapping[str, nn.Module], tp_size: int) -> Iterator[str]:
    if block.module not in modules:
        yield "the model has no such module"
        return
    module = modules[block.module]
    for path, ranks in block.attributes:
        owner: Any = module
        for name in path.split("."):
            owner = getattr(owner, name, None)
        if type(owner) is not int:
            yield f"it has no number {path}"
        elif len(ranks) != tp_size or not all(type(one) is int for one in ranks):
            yield f"its numbers {path} are not those of {tp_size} ranks"
    inside = dict(module.named_modules())
    yield from (f"it has no module {name}" for name in block.head_outputs if name not in inside)
    yield from (f"it has no parameter {name}" for name in block.first_rank_only if module._parameters.get(name) is None)
    if (block.num_heads or block.head_arguments or block.head_outputs) and len(block.head_slices) != tp_size:
        yield f"its heads are not those of {tp_size} ranks"


# --- what follows from the cuts --------------------------------------------------------------------------


def _again(plan: Plan, model: nn.Module, tp_size: int, inputs: Mapping[str, Any]) -> Plan:
    """Return the plan that has the cuts of `plan`, written down anew and rehearsed. Raises PlanError."""
    matrices, seen = find_linears(model), trace_training(model, inputs)
    kinds = {layer.module: layer.kind for layer in plan.layers if layer.kind is not LayerKind.SHARED_OUTPUT}
    records = {name: record for record in plan.parameters for name in record.names}
    weights = {name: records[f"{name}.weight"] for name in matrices}
    whole = [name for name in kinds if name in weights and weights[name].dim is None]
    if whole:
        raise PlanError(f"the plan cuts layers whose weights are whole in it: {', '.join(whole[:5])}")
    head = find_vocabulary(model, matrices, seen, tp_size)
    columns = {name for name, kind in kinds.items() if kind is LayerKind.COLUMN}
    rows = {name for name, kind in kinds.items() if kind is LayerKind.ROW}
    fitted = []
    for region in candidate_regions(matrices, seen, head.head_names):
        if columns.issuperset(region.columns) and rows.issuperset(region.rows):
            fitted.append(_fitted(region, plan, model, weights, records))
            columns -= set(region.columns)
            rows -= set(region.rows)
    fitted += [
        one
        for one in unreached_twins(model, fitted, matrices, seen)
        if {*one[0].columns, *one[0].rows} <= columns | rows
    ]
    lost = (columns | rows) - {name for region, _, _ in fitted for name in (*region.columns, *region.rows)}
    if lost:
        raise PlanError(
            f"the plan cuts {', '.join(sorted(lost)[:5])} without all of those that must be cut together: the columns "
            "that a row reads, and every reader of a column"
        )
    called = [one for one in fitted if one[0].rows[0] in seen.inputs]
    try:
        if called:
            check_shards(model, inputs, seen, called, tp_size)
    except ShardMismatch as error:
        raise PlanError(f"the plan was rehearsed and computes something else than the whole model: {error}") from error
    styles = {name: LayerRequest(experts=True) for name, kind in kinds.items() if kind is LayerKind.EXPERTS}
    request = PlanRequest(plan.source, styles, from_user=True)
    task = PlanningTask(model, inputs, seen, matrices, request, tp_size, head.head_names)
    alone = [
        StandaloneShard(name, kind, weights[name].dim or 0, _spread(weights[name], tp_size))
        for name, kind in kinds.items()
        if kind in _ALONE
    ]
    again = build_plan(task, PlanDraft(), fitted, alone, _part_of(head, kinds), 0)
    return add_sequence_parallel(task, fitted, again) if plan.sequences else again


def _spread(record: ParameterPlan, tp_size: int) -> ShardMap:
    ranks = tuple(record.pieces_of(tp_size, rank) for rank in range(tp_size))
    if not record.slices:
        return ShardMap(ranks, record.unit, record.fused_sizes)
    held = sum(length for one in ranks for _, length in one)
    return ShardMap(ranks, overlaps=record.dim is not None and held > record.shape[record.dim])


def _fitted(
    region: Region,
    plan: Plan,
    model: nn.Module,
    weights: Mapping[str, ParameterPlan],
    records: Mapping[str, ParameterPlan],
) -> CutRegion:
    """Return a region with the layout and the adaptation that a plan gives it."""
    block = next(
        (one for one in plan.blocks if one.module == region.block and bool(one.num_heads) == region.is_attention), None
    )
    block = block or next((one for one in plan.blocks if one.module == region.block), BlockPlan(region.block))
    module = model.get_submodule(region.block)
    prefix = f"{region.block}." if region.block else ""
    layers = {one.module for one in plan.layers}
    own = [name for name, _ in module.named_parameters() if f"{prefix}{name}".rpartition(".")[0] not in layers]
    rows_of = {name: records[f"{prefix}{name}"] for name in own if region.is_attention}
    cut = tuple(name for name, record in rows_of.items() if record.dim is not None)
    heads = _heads(block, [rows_of[name] for name in cut], plan.tp_size)
    spreads = {name: _spread(weights[name], plan.tp_size) for name in region.columns}
    rows = {_spread(weights[name], plan.tp_size) for name in region.rows}
    if len(rows) > 1:
        raise PlanError(f"the plan cuts {', '.join(region.rows)}, which read the same, each in another way")
    adaptation = BlockPatch(block.attributes, block.head_arguments, block.head_outputs, cut)
    return region, RegionSharding(spreads, rows.pop(), heads), adaptation


def _heads(block: BlockPlan, cut: Sequence[ParameterPlan], tp_size: int) -> HeadSharding | None:
    """Return the heads of a block, from what it is told, and from parameters with one row for each of them."""
    sizes = [record.shape[0] for record in cut]
    if not block.num_heads and not sizes:
        return None
    count = block.num_heads or max(sizes)
    kv_count = min([count, *sizes])
    held = {}
    for record in cut:
        pieces = [record.pieces_of(tp_size, rank) for rank in range(tp_size)]
        if any(len(one) != 1 for one in pieces):
            raise PlanError(f"{record.name}: each rank must hold one piece of it")
        held[record.shape[0]] = [one[0] for one in pieces]
    ranks = list(block.head_slices) if block.num_heads else held[count]
    return HeadSharding(count, kv_count, tuple(zip(ranks, held.get(kv_count, ranks), strict=True)))


def _part_of(head: Vocabulary, kinds: Mapping[str, LayerKind]) -> Vocabulary:
    """Return what of the vocabulary a plan cuts: a weight where any module that holds it is cut."""
    weights = {name.rpartition(".")[0]: id(one) for name, one in head.parameters if name.endswith(".weight")}
    wanted = {weights[name] for name, _, _ in head.layers if name in kinds}
    names = {name for name, _, _ in head.layers if weights[name] in wanted}
    return Vocabulary(
        tuple(one for one in head.layers if one[0] in names),
        tuple(one for one in head.parameters if one[0].rpartition(".")[0] in names),
        head.head_names,
    )


def _differences(plan: Plan, again: Plan) -> list[str]:
    """Return where a plan says something else than what follows from its own cuts."""
    found = []
    right = {record.name: record for record in again.parameters}
    for record in plan.parameters:
        other = right[record.name]
        for word, one, two in (
            ("cut", record.cut.value, other.cut.value),
            ("dim", record.dim, other.dim),
            ("slices", _held(record, plan.tp_size), _held(other, plan.tp_size)),
            ("gradient_rule", record.gradient_rule.value, other.gradient_rule.value),
        ):
            if one != two:
                found.append(f"{record.name}: its {word} is {one}, and must be {two} beside the other cuts")
    for kind, key in (("layers", "module"), ("blocks", "module"), ("sequences", "stack")):
        mine = {getattr(one, key): one for one in getattr(plan, kind)}
        theirs = {getattr(one, key): one for one in getattr(again, kind)}
        for name in [*mine, *(name for name in theirs if name not in mine)]:
            if name not in theirs or name not in mine:
                there = "there" if name in mine else "missing"
                found.append(f"{kind[:-1]} {name} is {there}, and must not be, beside the other cuts")
                continue
            for place in fields(mine[name]):
                said, needed = getattr(mine[name], place.name), getattr(theirs[name], place.name)
                if said != needed:
                    found.append(f"{kind[:-1]} {name}: its {place.name} is {said}, and must be {needed}")
    return found


def _held(record: ParameterPlan, tp_size: int) -> list[Pieces]:
    return [record.pieces_of(tp_size, rank) for rank in range(tp_size)]
