"""Cutting the tokens between the cut regions: in which lists of layers, where it ends for a while, and a rehearsal.

A list of layers (a stack) is entered with this rank's part of the tokens and left with all of them. Inside, what a
region's columns read is gathered, and what its rows give is scattered. That all else in a layer treats each token by
itself (norms, sums, dropout, matrices that are not cut) is rehearsed on each rank's part. A module that does not, and
can't be cut (experts, latent attention), sees all tokens and computes the same on every rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tpinit.runtime.errors import PlanError
from tpinit.runtime.parallel.sequence import map_input, map_output
from tpinit.runtime.planning.analysis.fake_forward import run_fake_forward
from tpinit.runtime.planning.analysis.linears import LinearInfo
from tpinit.runtime.planning.build import PlanningTask
from tpinit.runtime.planning.check.dry_run import compare, patched_block, replay
from tpinit.runtime.planning.partition.regions import CutRegion, ShardMismatch, common_block
from tpinit.runtime.planning.schema import Cut, GradientRule, LayerKind, LayerPlan, ParameterPlan, Plan, SequencePlan
from tpinit.runtime.shards import shard
from tpinit.runtime.slicing import take_pieces

__all__ = ["add_sequence_parallel"]

_TOKENS = 1  # the dimension of [batch, tokens, features]
_DIMENSIONS = 3


def add_sequence_parallel(task: PlanningTask, fitted: Sequence[CutRegion], plan: Plan) -> Plan:
    """Return the plan in which tokens are cut too, wherever they can be. Reads the model, changes nothing.

    Raises PlanError, with every reason, for a model none of whose lists of layers can be entered with a part of the
    tokens.
    """
    stacks = _stacks(task.model, fitted)
    reasons = [f"{name}: {why}" for name, why in stacks.refused]
    found: list[tuple[SequencePlan, list[CutRegion]]] = []
    for path, regions in stacks.found.items():
        fit = _fit(task, path, regions, fitted)
        if isinstance(fit, ShardMismatch):
            reasons.append(f"{path}: {fit}")
        else:
            found.append((fit, regions))
    if not found or reasons:
        raise PlanError(
            "sequence_parallel: the tokens of this model can't be cut between its layers over "
            f"{task.tp_size} ranks; initialize without it:\n"
            + "\n".join(f"  {one}" for one in reasons or ["it has no list of layers with cut regions inside"])
        )
    for sequence, regions in found:
        plan = _rewritten(plan, task, sequence, regions)
    return replace(plan, sequences=tuple(sequence for sequence, _ in found))


# --- which lists of layers -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stacks:
    found: dict[str, list[CutRegion]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)


def _stacks(model: nn.Module, fitted: Sequence[CutRegion]) -> _Stacks:
    """Return the outermost lists of modules that hold cut regions, and those regions."""
    stacks = _Stacks()
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists if other != name)]
    for one in fitted:
        names = (*one[0].columns, *one[0].rows)
        path = next((path for path in outer if all(name.startswith(f"{path}.") for name in names)), None)
        if path is None:
            stacks.refused.append((one[0].block or type(model).__qualname__, "it is cut, and is in no list of layers"))
        elif len({_layer_of(path, name) for name in names}) > 1:
            stacks.refused.append((one[0].block, "it is cut together over more than one layer"))
        else:
            stacks.found.setdefault(path, []).append(one)
    return stacks


def _layer_of(stack: str, name: str) -> str:
    return f"{stack}.{name[len(stack) + 1 :].partition('.')[0]}"


def _child_of(stack: str, name: str) -> str:
    """Return the child of a layer in which something lies; the thing itself where it is that child."""
    layer = _layer_of(stack, name)
    return f"{layer}.{name[len(layer) + 1 :].partition('.')[0]}"


# --- where tokens are gathered ---------------------------------------------------------------------------


def _fit(
    task: PlanningTask, path: str, regions: Sequence[CutRegion], fitted: Sequence[CutRegion]
) -> SequencePlan | ShardMismatch:
    """Return how the tokens are cut in one list of layers, or why they can't be."""
    whole = _kept_whole(task, path, regions)
    direct = [one for one in regions if not _inside(one[0].columns[0], whole)]
    inside = {name for name in task.linears if name.startswith(f"{path}.")}
    random = bool(task.trace.reach_dropout & inside)
    astray = [name for name in whole if any(_inside(one, [name]) for one in task.trace.reach_dropout)]
    if astray:
        return ShardMismatch(
            f"{astray[0]} needs all tokens, and draws random numbers, which would differ between ranks"
        )
    first: ShardMismatch | None = None
    for blocks in (True, False):
        entries = tuple(dict.fromkeys(itertools.chain(*(_entries(path, one[0].columns, blocks) for one in direct))))
        plan = SequencePlan(path, entries, tuple(whole), draws_random=random)
        found = _tried(task, plan, direct, fitted)
        if isinstance(found, SequencePlan):
            return found
        first = first or found
    assert first is not None
    return first


def _tried(
    task: PlanningTask, plan: SequencePlan, direct: Sequence[CutRegion], fitted: Sequence[CutRegion]
) -> SequencePlan | ShardMismatch:
    try:
        readers = _rehearse(task, plan, direct, fitted)
    except ShardMismatch as error:
        return error
    return replace(plan, column_readers=tuple(sorted(readers)))


def _entries(path: str, columns: Sequence[str], blocks: bool) -> list[str]:
    """Return where tokens are gathered for some columns: in front of the block that they share, or of each."""
    block = common_block(columns)
    return [block] if blocks and block.startswith(f"{_layer_of(path, columns[0])}.") else list(columns)


def _kept_whole(task: PlanningTask, path: str, regions: Sequence[CutRegion]) -> list[str]:
    """Return the children of layers that see all tokens: with experts, shared outputs, or attention that is not cut."""
    seen = task.trace
    names = [name for name in task.trace.context.experts if name.startswith(f"{path}.")]
    cut = {name for one in regions for name in one[0].columns}
    names += [name for name in seen.reach_attention if name.startswith(f"{path}.") and name not in cut]
    for region, _, _ in regions:
        reached = seen.inputs.get(region.rows[0], [])
        # Experts of a list see some of the tokens, in one dimension, or none.
        if region.shared_outputs or len(reached) != 1 or reached[0].dim() != _DIMENSIONS:
            names.append(region.columns[0])
    return list(dict.fromkeys(_child_of(path, name) for name in sorted(names)))


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in modules)


# --- rehearsal -------------------------------------------------------------------------------------------


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the base untyped
    """Sees who uses a tensor otherwise than by handing it on: by name, for each tensor that is watched."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the same
        self.watched: dict[int, tuple[str, torch.Tensor]] = {}
        self.used: set[str] = set()
        self.quiet = False

    def watch(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        self.watched[tensor.untyped_storage()._cdata] = name, tensor
        return tensor

    def name_of(self, tensor: torch.Tensor) -> str | None:
        return self.watched.get(tensor.untyped_storage()._cdata, (None, None))[0]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self.quiet:
            given = {self.name_of(one) for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)}
            kept = {self.name_of(one) for one in tree_leaves(result) if isinstance(one, torch.Tensor)}
            self.used |= {name for name in given - kept if name is not None}
        return result


@dataclass(slots=True)
class _Whole:
    """What one run of the whole model showed: what entered and left the modules of interest; who read what entered."""

    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    readers: dict[str, set[str]] = field(default_factory=dict)


def _rehearse(
    task: PlanningTask, plan: SequencePlan, direct: Sequence[CutRegion], fitted: Sequence[CutRegion]
) -> set[str]:
    """Run the model once whole and once for each rank, tokens cut. Return the columns that read what is gathered.

    Raises Mismatch.
    """
    layers = [f"{plan.stack}.{name}" for name, _ in task.model.get_submodule(plan.stack).named_children()]
    whole = _run_whole(task, plan, layers)
    columns = {name for one in direct for name in one[0].columns if name not in one[0].fed_by_shared}
    for name in plan.gather_inputs:
        strangers = whole.readers.get(name, set()) - columns
        if strangers or not whole.readers.get(name):
            raise ShardMismatch(
                f"{name} is read by {', '.join(sorted(strangers)) or 'nothing'} too, which is not cut with it"
            )
    for rank in range(task.tp_size):
        _run_rank(task, plan, layers, whole, direct, fitted, rank)
    return {reader for name in plan.gather_inputs for reader in whole.readers[name]}


def _run_whole(task: PlanningTask, plan: SequencePlan, layers: Sequence[str]) -> _Whole:
    whole, uses, again = _Whole(), _Uses(), replay()

    def once(into: dict[str, torch.Tensor], name: str, hidden: torch.Tensor) -> torch.Tensor:
        if name in into:
            raise ShardMismatch(f"{name} runs more than once in a forward")
        if not isinstance(hidden, torch.Tensor) or hidden.dim() != _DIMENSIONS:
            raise ShardMismatch(f"{name} has no hidden states [batch, tokens, features] in front")
        into[name] = hidden.detach().clone()
        return hidden

    def matrix(one: LinearInfo, features: torch.Tensor) -> torch.Tensor:
        name = uses.name_of(features)
        if name is not None:
            whole.readers.setdefault(name, set()).add(one.name)
        uses.quiet = True
        try:
            return again(task.trace.outputs, one.name)[1].clone()
        finally:
            uses.quiet = False

    def entered(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda hidden: uses.watch(name, once(whole.inputs, name, hidden).clone())

    with (
        _hooked(
            task.model,
            {layers[0]: lambda hidden: once(whole.inputs, layers[0], hidden)}
            | {name: (lambda hidden, name=name: once(whole.inputs, name, hidden)) for name in plan.replicated_modules}
            | {name: entered(name) for name in plan.gather_inputs},
            {
                name: (lambda hidden, name=name: once(whole.outputs, name, hidden))
                for name in (layers[-1], *plan.replicated_modules)
            },
        ),
        uses,
    ):
        _run(task, matrix, lambda name, _: again(task.trace.expert_outputs, name)[1].clone())
    if uses.used:
        raise ShardMismatch(f"{', '.join(sorted(uses.used))}: what enters is used by more than its cut matrices")
    if layers[-1] not in whole.outputs:
        raise ShardMismatch("its layers do not run one after the other")
    return whole


def _run_rank(
    task: PlanningTask,
    plan: SequencePlan,
    layers: Sequence[str],
    whole: _Whole,
    direct: Sequence[CutRegion],
    fitted: Sequence[CutRegion],
    rank: int,
) -> None:
    again = replay()
    columns = {name: layout.columns[name].slices[rank] for region, layout, _ in fitted for name in region.columns}
    rows = {name: layout.row.slices[rank] for region, layout, _ in fitted for name in region.rows}
    scattered = {name for region, _, _ in direct for name in region.rows}
    readers = {reader for every in whole.readers.values() for reader in every}

    def part(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.narrow(_TOKENS, *shard(tensor.shape[_TOKENS], task.tp_size, rank))

    def check(name: str, hidden: torch.Tensor, expected: torch.Tensor) -> None:
        if expected.numel() or hidden.shape != expected.shape:
            compare(name, hidden, expected, rank)

    def gathered(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(hidden: torch.Tensor) -> torch.Tensor:
            check(name, hidden, part(whole.inputs[name]))
            return whole.inputs[name].clone()

        return change

    def left(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def change(hidden: torch.Tensor) -> torch.Tensor:
            check(name, hidden, part(whole.outputs[name]))
            return whole.outputs[name].clone()

        return change

    def alone(name: str) -> bool:
        """Tell whether what reaches a matrix is a part of the tokens."""
        outside = not name.startswith(f"{plan.stack}.") or name in readers or name in rows
        return not (outside or _inside(name, (*plan.gather_inputs, *plan.replicated_modules)))

    def matrix(one: LinearInfo, features: torch.Tensor) -> torch.Tensor:
        call, output = again(task.trace.outputs, one.name)
        expected = task.trace.inputs[one.name][call]
        if one.name in rows:
            expected = take_pieces(expected, -1, rows[one.name])
        local = alone(one.name)
        if local and expected.dim() != _DIMENSIONS:
            raise ShardMismatch(
                f"{one.name} reads {list(expected.shape)}, in which the tokens of a batch are one dimension"
            )
        check(one.name, features, part(expected) if local else expected)
        if one.name in columns:
            return take_pieces(output, -1, columns[one.name]).clone()
        return (part(output) if local or one.name in scattered else output).clone()

    with ExitStack() as stack:
        for region, layout, adaptation in fitted:
            if region.rows[0] in task.trace.inputs:
                stack.enter_context(patched_block(task.model.get_submodule(region.block), layout, adaptation, rank))
        stack.enter_context(
            _hooked(
                task.model,
                {layers[0]: lambda hidden: part(hidden).clone()}
                | {name: gathered(name) for name in (*plan.gather_inputs, *plan.replicated_modules)},
                {name: (lambda hidden: part(hidden).clone()) for name in plan.replicated_modules}
                | {layers[-1]: left(layers[-1])},
            )
        )
        _run(task, matrix, lambda name, _: again(task.trace.expert_outputs, name)[1].clone())


def _run(task: PlanningTask, matrix: Any, experts: Any) -> None:
    try:
        run_fake_forward(task.model, task.inputs, matrix, experts, context=task.trace.context)
    except (ShardMismatch, NotImplementedError):
        raise
    except Exception as error:  # whatever a model raises on a part of its tokens: they can't be cut so
        raise ShardMismatch(f"its forward raises {type(error).__name__}: {str(error).splitlines()[0][:160]}") from error


@contextmanager
def _hooked(model: nn.Module, inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> Iterator[None]:
    """Change what enters and leaves some modules, for the time of a run."""
    handles = [map_input(model.get_submodule(name), change) for name, change in inputs.items()]
    handles += [map_output(model.get_submodule(name), change) for name, change in outputs.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# --- what follows for the plan ---------------------------------------------------------------------------


def _rewritten(plan: Plan, task: PlanningTask, sequence: SequencePlan, regions: Sequence[CutRegion]) -> Plan:
    """Return the plan with what the tokens' cut changes: who collects gradients, and whose are parts."""
    direct = [one[0] for one in regions if not _inside(one[0].columns[0], sequence.replicated_modules)]
    rows = {name for region in direct for name in region.rows}
    inside = f"{sequence.stack}."

    def layer(one: LayerPlan) -> LayerPlan:
        if not one.module.startswith(inside):
            return one
        reads = one.module in sequence.column_readers
        return replace(
            one,
            reduce_input_grad=one.reduce_input_grad and not reads,
            fused_with="" if reads else one.fused_with,
            draws_random=False,
            scatter_output=one.kind is LayerKind.ROW and one.module in rows,
        )

    def record(one: ParameterPlan) -> ParameterPlan:
        held = [name.startswith(inside) for name in one.names]
        if not any(held) or one.cut is not Cut.REPLICATED or _inside(one.name, sequence.replicated_modules):
            return one
        if not all(held):
            raise PlanError(
                f"sequence_parallel: {' = '.join(one.names)} is used both inside and outside of {sequence.stack}: its "
                "gradient on a rank would be a part and a whole; initialize without it"
            )
        owner = one.name.rpartition(".")[0]
        met = task.trace.reach_parameter.get(one.name, set())
        near = {name for name in rows if _layer_of(sequence.stack, name) == _layer_of(sequence.stack, one.name)}
        part = not _inside(one.name, sequence.gather_inputs) or owner in rows or bool(met & near)
        return replace(one, gradient_rule=GradientRule.PARTIAL) if part else one

    return replace(
        plan, layers=tuple(layer(one) for one in plan.layers), parameters=tuple(record(one) for one in plan.parameters)
    )
