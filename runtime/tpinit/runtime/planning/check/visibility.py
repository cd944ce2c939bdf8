"""Refuses what a plan can't see: hooks, replaced methods and computed weights of sharded layers, and around them.

A module whose inputs and outputs are whole on every rank may have hooks: they see what they see without sharding.
The trace shows which modules these are. Everything else is refused by name, before the model is changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.attachments import Attachments, is_replaced
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.schema import GradientRule, LayerKind, Plan

__all__ = ["blocked_modules", "check_records", "check_visibility"]

_SHARDED_INSIDE = (LayerKind.COLUMN, LayerKind.ROW)
_REMOVE_HOOK = (
    "its tensors are sharded there; remove the hook, register it on the block around this module, whose input and "
    "output are whole, or keep the layer whole (partition_type skip in partition_config)"
)
_KEEP_WHOLE = (
    "undo it (torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, prune.remove, or delete the "
    "attribute), or keep the layer whole (partition_type skip in partition_config)"
)


@dataclass(frozen=True, slots=True)
class _Sharded:
    """What of a plan the checks look at: the kinds of its layers by module, and where tokens or experts are sharded."""

    kinds: Mapping[str, LayerKind]
    columns: frozenset[str]
    shared: frozenset[str]
    experts: tuple[str, ...]
    stacks: tuple[str, ...]

    @staticmethod
    def of(plan: Plan) -> _Sharded:
        kinds = {layer.module: layer.kind for layer in plan.layers}
        names = {kind: frozenset(name for name, other in kinds.items() if other is kind) for kind in LayerKind}
        stacks = tuple(sequence.stack for sequence in plan.sequences)
        return _Sharded(
            kinds, names[LayerKind.COLUMN], names[LayerKind.SHARED_OUTPUT], tuple(names[LayerKind.EXPERTS]), stacks
        )


def check_visibility(plan: Plan, attachments: Attachments, trace: Trace) -> None:
    """Raise PlanError, with every problem, if something is attached or read that sharding by `plan` would change."""
    sharded = _Sharded.of(plan)
    problems = [
        *_override_problems(sharded, attachments),
        *_hook_problems(sharded, attachments, trace),
        *_gradient_hook_problems(plan, attachments),
        *_weight_read_problems(plan, trace),
        *((name, text) for name, text in trace.kept.items() if name in sharded.columns or plan.sequences),
    ]
    if problems:
        raise PlanError(
            f"this model can't be sharded over {plan.tp_size} ranks, because planning can't see what this does:\n"
            + "\n".join(f"  {name}: {problem}" for name, problem in problems),
            dict.fromkeys(name for name, _ in problems),
        )


def check_records(plan: Plan, model: nn.Module) -> None:
    """Raise PlanError unless every sharded layer has a sharded weight, and every sharded parameter a sharded layer.

    The second holds too for a parameter inside a block that is sharded by heads, which has no layer of its own.
    """
    records = {name: record for record in plan.parameters for name in record.names}
    layers = {layer.module for layer in plan.layers if layer.kind is not LayerKind.SHARED_OUTPUT}
    problems = []
    for layer in layers:
        prefix = f"{layer}." if layer else ""
        if not any(name.startswith(prefix) and record.dim is not None for name, record in records.items()):
            problems.append(f"{layer} is a sharded layer, and no parameter of it is sharded")
    blocks = _blocks_of(plan)
    for record in plan.parameters:
        if record.dim is None:
            continue
        legal = [not {*layers, *blocks}.isdisjoint(_owners(name)) for name in record.names]
        for name, in_layer in zip(record.names, legal, strict=True):
            owner = _owners(name)[0]
            # A tied name may be an alias that nothing reads: BERT's head keeps a second name of its decoder's bias.
            if not in_layer and (not any(legal) or is_replaced(model.get_submodule(owner))):
                problems.append(f"{name} is sharded, and {owner or type(model).__qualname__} is no sharded layer")
    if problems:
        raise PlanError(
            "the records of the plan contradict each other:\n" + "\n".join(f"  {problem}" for problem in problems)
        )


def blocked_modules(model: nn.Module, trace: Trace) -> dict[str, str]:
    """Return the modules that must stay replicated because a forward reads their weights itself, with the reason."""
    readers = {id(model.get_parameter(name)): (name, reader) for name, reader in trace.weight_reads.items()}
    blocked: dict[str, str] = {}
    if not readers:
        return blocked
    names = [*trace.context.linears, *trace.context.experts]
    names += [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
    for name in names:
        for parameter in model.get_submodule(name).parameters():
            if id(parameter) in readers:
                weight, reader = readers[id(parameter)]
                blocked[name] = f"{reader} reads the values of {weight} without calling its module"
    return blocked


def _weight_read_problems(plan: Plan, trace: Trace) -> Iterator[tuple[str, str]]:
    """Yield the weights that a forward reads itself, and that are sharded or would get a gradient that is wrong.

    The gradient of a whole weight is complete from the call of its module, and partial where sharded features meet it.
    """
    sharded = {layer.module for layer in plan.layers if layer.kind in (LayerKind.COLUMN, LayerKind.SHARED_OUTPUT)}
    for record in plan.parameters:
        for name in record.names:
            reader = trace.weight_reads.get(name)
            if reader is None:
                continue
            if record.dim is not None:
                yield name, f"{reader} reads its values without calling its module, so it can't be sharded"
            called = any(other.rpartition(".")[0] in trace.sources for other in record.names)
            called = called or not trace.embedding_calls.isdisjoint(record.names)
            if called and trace.reach_parameter.get(name, set()) & sharded:
                yield name, f"{reader} multiplies its values with sharded features, and its module is called too"


def _blocks_of(plan: Plan) -> set[str]:
    """Return the blocks in which features are sharded: the modules that hold column-parallel or row-parallel layers."""
    inside = [layer.module for layer in plan.layers if layer.kind in _SHARDED_INSIDE]
    return {owner for name in inside for owner in _owners(name)[:1]} | {block.module for block in plan.blocks}


def _owners(name: str) -> list[str]:
    """Return the modules that contain a parameter or module, innermost first; the model itself is the last, empty."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:length]) for length in range(len(parts), -1, -1)]


def _override_problems(sharded: _Sharded, attachments: Attachments) -> Iterator[tuple[str, str]]:
    for name, found in attachments.overrides.items():
        inside_experts = any(name.startswith(f"{expert}.") for expert in sharded.experts)
        if name in sharded.kinds or inside_experts:
            yield name, f"{'; '.join(found)}: {_KEEP_WHOLE}"


def _hook_problems(sharded: _Sharded, attachments: Attachments, trace: Trace) -> Iterator[tuple[str, str]]:
    for backward, hooks in ((False, attachments.forward_hooks), (True, attachments.backward_hooks)):
        for name, found in hooks.items():
            if any(name.startswith(f"{stack}.") for stack in sharded.stacks):
                yield (
                    name,
                    f"{'; '.join(found)}: with sequence_parallel it would see a part of the tokens; remove the hook, "
                    "or initialize without sequence_parallel",
                )
            elif _sees_slices(name, sharded, trace, backward=backward):
                yield name, f"{'; '.join(found)}: {_REMOVE_HOOK}"


def _sees_slices(name: str, sharded: _Sharded, trace: Trace, *, backward: bool) -> bool:
    """Return whether a hook of a module would see slices of features, or partial sums of gradients."""
    kind = sharded.kinds.get(name)
    if kind in _SHARDED_INSIDE or any(name.startswith(f"{expert}.") for expert in sharded.experts):
        return True
    if kind is not None:
        return backward and kind in (LayerKind.EXPERTS, LayerKind.SHARED_OUTPUT)
    if name not in trace.hooked:  # the trace did not reach it: only its neighbours show what it would see
        parent = _owners(name)[0]
        return any(_owners(layer)[0] == parent for layer in sharded.columns)
    return bool(trace.hooked[name] & (sharded.columns | (sharded.shared if backward else frozenset())))


def _gradient_hook_problems(plan: Plan, attachments: Attachments) -> Iterator[tuple[str, str]]:
    for record in plan.parameters:
        for name in record.names:
            if name in attachments.gradient_hooks and record.gradient_rule is not GradientRule.REPLICATED:
                found = "; ".join(attachments.gradient_hooks[name])
                yield (
                    name,
                    f"{found}: it would see a rank's part of the gradient; remove the hook, or keep the layer whole "
                    "(partition_type skip in partition_config)",
                )
