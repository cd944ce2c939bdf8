"""Finds what is wrong with the records of a user's plan, each by itself: names, shapes, slices, kinds, attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from torch import nn
from tpinit.reference.spellings import nearest
from tpinit.runtime.internals.torch_private import parameters_of
from tpinit.runtime.planning.analysis.linears import find_experts, find_linears
from tpinit.runtime.planning.schema import BlockPlan, Cut, LayerKind, ParameterPlan, Plan

__all__ = ["layer_problems", "parameter_problems", "plan_differences"]

_MISSING_SHOWN = 5


# --- parameters ------------------------------------------------------------------------------------------


def parameter_problems(plan: Plan, model: nn.Module) -> Iterator[str]:
    """Yield what is wrong with the parameter records: names, ties and shapes that are not the model's, bad slices."""
    ties: dict[int, list[str]] = {}
    shapes = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        ties.setdefault(id(parameter), []).append(name)
        shapes[name] = tuple(parameter.shape)
    names_by_first = {names[0]: tuple(names) for names in ties.values()}
    recorded: set[str] = set()
    for record in plan.parameters:
        if not record.names:
            yield "a parameter record has no names"
            continue
        name = record.name
        if name not in names_by_first:
            yield f"{name}: the model has no such parameter{_hint(name, names_by_first)}"
            continue
        if name in recorded:
            yield f"{name} has two records"
        recorded.add(name)
        tied = names_by_first[name]
        if set(record.names) != set(tied):
            yield f"{name}: its tied names are {' = '.join(tied)}, not {' = '.join(record.names)}"
        if record.shape != shapes[name]:
            yield f"{name}: its shape is {list(shapes[name])}, not {list(record.shape)}"
        else:
            yield from (f"{name}: {problem}" for problem in _slice_problems(record, plan.tp_size))
    missing = [name for name in names_by_first if name not in recorded]
    if missing:
        more = " and more" if len(missing) > _MISSING_SHOWN else ""
        yield f"the plan has no record of {', '.join(missing[:_MISSING_SHOWN])}{more}"


def _hint(name: str, names: Mapping[str, object]) -> str:
    near = nearest(name, names)
    return f"; did you mean {near}?" if near else ""


def _slice_problems(record: ParameterPlan, tp_size: int) -> Iterator[str]:
    """Yield what is wrong with the slices of one parameter. Every rank holds some, and together they cover it."""
    if record.dim is None:
        if record.cut is not Cut.REPLICATED or record.slices or record.fused_sizes:
            yield f"its cut is {record.cut.value}, and it has no dim: give the dimension that is sharded"
        return
    if record.cut is Cut.REPLICATED or not isinstance(record.dim, int) or not 0 <= record.dim < len(record.shape):
        yield f"its cut {record.cut.value} along dim {record.dim!r} does not fit its shape {list(record.shape)}"
        return
    length = record.shape[record.dim]
    sizes = record.fused_sizes or (length,)
    if record.slices:
        if len(record.slices) != tp_size or not all(_are_pieces(pieces) for pieces in record.slices):
            yield f"slices must be lists of (offset, length) pairs, one list for each of {tp_size} ranks"
            return
    elif sum(sizes) != length or record.unit < 1 or any(size % record.unit for size in sizes):
        yield f"fused_sizes {list(sizes)} in units of {record.unit} do not add up to its length {length}"
        return
    yield from _coverage_problems(record, tp_size, length)


def _coverage_problems(record: ParameterPlan, tp_size: int, length: int) -> Iterator[str]:
    """Yield the first slice that is out of range or order, else every range that no rank holds."""
    held: list[tuple[int, int]] = []
    for rank in range(tp_size):
        end = 0
        for offset, size in record.pieces_of(tp_size, rank):
            if size < 1 or offset < end or offset + size > length:
                yield (
                    f"rank {rank} would hold {offset}:{offset + size} of 0:{length}; "
                    "slices must be in order, in range, and not empty"
                )
                return
            end = offset + size
            held.append((offset, size))
        if not end:
            yield f"rank {rank} would hold nothing of it"
    covered = 0
    for offset, size in [*sorted(held), (length, 0)]:
        if offset > covered:
            yield f"no rank holds {covered}:{offset} of 0:{length}"
        covered = max(covered, offset + size)


def _are_pieces(pieces: Any) -> bool:
    """Return whether a value from a plan's JSON is a list of (offset, length) pairs."""
    return isinstance(pieces, tuple) and all(
        isinstance(piece, tuple) and len(piece) == 2 and all(type(number) is int and number >= 0 for number in piece)
        for piece in pieces
    )


# --- layers and blocks -----------------------------------------------------------------------------------


def layer_problems(plan: Plan, model: nn.Module) -> Iterator[str]:
    """Yield what is wrong with the layer and block records: modules that are not there, or not of that kind."""
    modules = dict(model.named_modules())
    linears, experts = find_linears(model), find_experts(model)
    for layer in plan.layers:
        if layer.module not in modules:
            yield f"layer {layer.module}: the model has no such module{_hint(layer.module, modules)}"
            continue
        module = modules[layer.module]
        if layer.kind is LayerKind.EMBEDDING:
            legal = isinstance(module, nn.Embedding)
        else:
            legal = layer.module in (experts if layer.kind is LayerKind.EXPERTS else linears)
        if not legal:
            yield f"layer {layer.module}: a {type(module).__qualname__} can't be of kind {layer.kind.value}"
    for block in plan.blocks:
        yield from (f"block {block.module}: {problem}" for problem in _block_problems(block, modules, plan.tp_size))


def _block_problems(block: BlockPlan, modules: Mapping[str, nn.Module], tp_size: int) -> Iterator[str]:
    if block.module not in modules:
        yield "the model has no such module"
        return
    module = modules[block.module]
    for path, values in block.attributes:
        value: Any = module
        for name in path.split("."):
            value = getattr(value, name, None)
        if type(value) is not int:
            yield f"it has no integer attribute {path}"
        elif len(values) != tp_size or not all(type(rank_value) is int for rank_value in values):
            yield f"its attribute {path} needs {tp_size} integers, one for each rank"
    inside = dict(module.named_modules())
    yield from (f"it has no module {name}" for name in block.head_outputs if name not in inside)
    yield from (
        f"it has no parameter {name}" for name in block.first_rank_only if parameters_of(module).get(name) is None
    )
    if (block.num_heads or block.head_arguments or block.head_outputs) and len(block.head_slices) != tp_size:
        yield f"head_slices needs {tp_size} (offset, length) pairs, one for each rank"


# --- the plan that follows from the same cuts ------------------------------------------------------------


def plan_differences(plan: Plan, expected: Plan) -> list[str]:
    """Return where a plan differs from `expected`: the plan of the same model that follows from the plan's own cuts."""
    return [*_parameter_differences(plan, expected), *_record_differences(plan, expected)]


def _parameter_differences(plan: Plan, expected: Plan) -> Iterator[str]:
    by_name = {record.name: record for record in expected.parameters}
    ranks = range(plan.tp_size)
    for record in plan.parameters:
        other = by_name[record.name]
        for key, found, needed in (
            ("cut", record.cut.value, other.cut.value),
            ("dim", record.dim, other.dim),
            (
                "slices",
                [record.pieces_of(plan.tp_size, rank) for rank in ranks],
                [other.pieces_of(plan.tp_size, rank) for rank in ranks],
            ),
            ("gradient_rule", record.gradient_rule.value, other.gradient_rule.value),
        ):
            if found != needed:
                yield f"{record.name}: its {key} is {found}, and must be {needed} given the plan's other cuts"


def _record_differences(plan: Plan, expected: Plan) -> Iterator[str]:
    """Yield the differences of the layer, block and sequence records, which are matched by their module."""
    for kind, key in (("layers", "module"), ("blocks", "module"), ("sequences", "stack")):
        records = {getattr(record, key): record for record in getattr(plan, kind)}
        needed = {getattr(record, key): record for record in getattr(expected, kind)}
        for name in dict.fromkeys([*records, *needed]):
            if name not in needed:
                yield f"{kind[:-1]} {name}: the plan has a record of it, and must not, given the plan's cuts"
            elif name not in records:
                yield f"{kind[:-1]} {name}: the plan has no record of it, and must, given the plan's cuts"
            else:
                for place in fields(records[name]):
                    given, right = getattr(records[name], place.name), getattr(needed[name], place.name)
                    if given != right:
                        yield f"{kind[:-1]} {name}: its {place.name} is {given}, and must be {right}"
