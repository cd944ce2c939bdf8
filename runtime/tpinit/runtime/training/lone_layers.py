"""Which modules of a sharded model can't be called by themselves, and which to call instead (`parallel.enclosed`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn
from tpinit.runtime.parallel.enclosed import check_enclosed, mark_layer, mark_whole
from tpinit.runtime.parallel.forward_scope import scope_of
from tpinit.runtime.planning.schema import LayerKind, Plan
from tpinit.runtime.training.hook_places import HookPlaces, is_inside, owners_of, token_places

__all__ = ["LONE_CALLS", "refuse_lone_calls"]

LONE_CALLS: dict[LayerKind, str] = {
    LayerKind.COLUMN: "column-parallel, and returns this rank's part of the features",
    LayerKind.ROW: "row-parallel, and takes this rank's part of the features",
    LayerKind.SHARED_OUTPUT: "read by sharded layers, and each rank has a part of its output's gradient",
    LayerKind.COLUMN_GATHER: "",
    LayerKind.ROW_SPLIT: "",
    LayerKind.EMBEDDING: "",
    LayerKind.HEAD: "",
    LayerKind.EXPERTS: "",
}
"""What is a part where a layer of a kind is called by itself; empty for a kind that takes and returns whole tensors."""

_EXPERT = "inside experts of which each rank holds a part, and returns a part of what it would return unsharded"
_FEATURES = "between sharded layers, and computes with this rank's part of the heads or features"
_TOKENS = "between layers whose tokens are sharded (sequence_parallel), and takes and returns this rank's part of them"


def refuse_lone_calls(model: nn.Module, plan: Plan) -> None:
    """Mark the modules of a converted model that compute with parts, and the modules around them that are whole."""
    scope = scope_of(model)
    assert scope is not None, "a converted model has a scope"
    between = dict(_between_layers(plan))  # the forwards of the others check by themselves
    partial = {**dict(_layers(plan)), **dict(_inside_experts(plan)), **between, **dict(_with_tokens(model, plan))}
    whole = {name for name in _whole_modules(plan, partial) if _can_be_called(model.get_submodule(name))}
    for name in whole:
        mark_whole(model.get_submodule(name))
    for name, what in partial.items():
        block = next((owner for owner in owners_of(name) if owner in whole), "")
        mark_layer(model.get_submodule(name), scope, name, what, block)
    for name in between:
        model.get_submodule(name).register_forward_pre_hook(_check)


def _can_be_called(module: nn.Module) -> bool:
    return getattr(type(module), "forward", None) is not nn.Module.forward  # as a ModuleList's is


def _check(module: nn.Module, _: object) -> None:
    check_enclosed(module)


# Each of these yields the names of modules that compute with parts, and what they are.


def _layers(plan: Plan) -> Iterator[tuple[str, str]]:
    yield from ((layer.module, LONE_CALLS[layer.kind]) for layer in plan.layers)


def _inside_experts(plan: Plan) -> Iterator[tuple[str, str]]:
    experts = _experts(plan)
    for owner in _owners_of_parts(plan):
        if _is_in(owner, experts):
            yield owner, _EXPERT


def _between_layers(plan: Plan) -> Iterator[tuple[str, str]]:
    places, kinds = HookPlaces(plan), {layer.module for layer in plan.layers}
    heads = [f"{block.module}.{name}" if block.module else name for block in plan.blocks for name in block.head_outputs]
    for name in (*_owners_of_parts(plan), *heads):
        if name not in kinds and places.sees_parts(name, backward=False) and not _is_in(name, _experts(plan)):
            yield name, _FEATURES


def _with_tokens(model: nn.Module, plan: Plan) -> Iterator[tuple[str, str]]:
    for sequence in plan.sequences:
        yield from ((name, _TOKENS) for name in token_places(model, sequence))


def _experts(plan: Plan) -> set[str]:
    return {layer.module for layer in plan.layers if layer.kind is LayerKind.EXPERTS}


def _owners_of_parts(plan: Plan) -> list[str]:
    return [name.rpartition(".")[0] for record in plan.parameters if record.dim is not None for name in record.names]


def _is_in(name: str, blocks: Collection[str]) -> bool:
    return any(is_inside(name, block) for block in blocks)


def _whole_modules(plan: Plan, partial: Collection[str]) -> set[str]:
    """Return the modules around those that compute with parts whose inputs and outputs are whole."""
    places, experts = HookPlaces(plan), _experts(plan)
    # A block of experts is patched inside; another one slices its arguments and outputs by hooks of its own.
    patched = [block.module for block in plan.blocks if block.module not in experts]
    around = {owner for name in partial for owner in owners_of(name)} - experts
    return experts | {
        name for name in around if not places.sees_parts(name, backward=True) and not _is_in(name, patched)
    }
