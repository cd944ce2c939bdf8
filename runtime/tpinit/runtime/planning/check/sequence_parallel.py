"""Adds sequence parallelism to a plan: finds the lists of layers in which the tokens can be sharded, and where.

Such a list of layers is a stack. The first layer of a stack receives a rank's part of the tokens, the last one returns
all tokens. Inside, the input of a region's column-parallel layers is gathered over the ranks, and the output of its
row-parallel layers is reduce-scattered. A dry run on every rank's part of the tokens checks that everything else in a
layer (norms, residual sums, dropout, replicated linear layers) treats each token by itself. A module that does not, and
that can't be sharded (experts, latent attention), receives all tokens and computes the same on every rank.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.build import PlanningTask
from tpinit.runtime.planning.check.sequence_dry_run import HIDDEN_DIMS, TokenReaders, check_sequence, is_inside
from tpinit.runtime.planning.partition.regions import CutRegion, ShardMismatch, common_block
from tpinit.runtime.planning.schema import Cut, GradientRule, LayerKind, LayerPlan, ParameterPlan, Plan, SequencePlan

__all__ = ["add_sequence_parallel"]


def add_sequence_parallel(task: PlanningTask, regions: Sequence[CutRegion], plan: Plan) -> Plan:
    """Return the plan with the tokens sharded in every stack that holds regions. Reads the model, changes nothing.

    Raises PlanError, with every reason, if the tokens of any of these stacks can't be sharded or if there is no stack.
    """
    stacks = _find_stacks(task.model, regions)
    reasons = [f"{name}: {reason}" for name, reason in stacks.refused]
    found: list[tuple[SequencePlan, TokenReaders, list[CutRegion]]] = []
    for stack, stack_regions in stacks.regions.items():
        fitted = _try_stack(task, stack, stack_regions, regions)
        if isinstance(fitted, ShardMismatch):
            reasons.append(f"{stack}: {fitted}")
        else:
            found.append((*fitted, stack_regions))
    if not found or reasons:
        raise PlanError(
            "sequence_parallel: the tokens of this model can't be sharded between its layers over "
            f"{task.tp_size} ranks; initialize without it:\n"
            + "\n".join(f"  {reason}" for reason in reasons or ["no list of layers holds a sharded region"])
        )
    for sequence, readers, stack_regions in found:
        plan = _with_sequence(plan, task, sequence, readers, stack_regions)
    return replace(plan, sequences=tuple(sequence for sequence, _, _ in found))


# --- which lists of layers -------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stacks:
    """The regions of each stack, by the stack's name; and the blocks that no stack can hold, each with the reason."""

    regions: dict[str, list[CutRegion]] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)


def _find_stacks(model: nn.Module, regions: Sequence[CutRegion]) -> _Stacks:
    """Return the outermost ModuleLists that hold regions, with those regions."""
    stacks = _Stacks()
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outermost = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists if other != name)]
    for cut_region in regions:
        region = cut_region[0]
        names = (*region.columns, *region.rows)
        stack = next((path for path in outermost if any(name.startswith(f"{path}.") for name in names)), None)
        if stack is None:
            continue  # a head behind the layers: it has all tokens
        if not all(name.startswith(f"{stack}.") for name in names):
            stacks.refused.append(
                (region.block or type(model).__qualname__, f"it is sharded in and outside of {stack}")
            )
        elif len({_layer_of(stack, name) for name in names}) > 1:
            stacks.refused.append((region.block, "one sharded region spans more than one layer"))
        else:
            stacks.regions.setdefault(stack, []).append(cut_region)
    return stacks


def _layer_of(stack: str, name: str) -> str:
    """Return the layer of a stack that holds a module or parameter, by name."""
    return f"{stack}.{name[len(stack) + 1 :].partition('.')[0]}"


def _child_of_layer(stack: str, name: str) -> str:
    """Return the direct child of a layer that holds a module, or the module itself if it is that child."""
    layer = _layer_of(stack, name)
    return f"{layer}.{name[len(layer) + 1 :].partition('.')[0]}"


# --- where tokens are gathered ---------------------------------------------------------------------------


def _try_stack(
    task: PlanningTask, stack: str, stack_regions: Sequence[CutRegion], regions: Sequence[CutRegion]
) -> tuple[SequencePlan, TokenReaders] | ShardMismatch:
    """Return how the tokens of one stack are sharded, or why they can't be."""
    try:
        return _fit_stack(task, stack, stack_regions, regions)
    except ShardMismatch as error:
        return error


def _fit_stack(
    task: PlanningTask, stack: str, stack_regions: Sequence[CutRegion], regions: Sequence[CutRegion]
) -> tuple[SequencePlan, TokenReaders]:
    """Return how the tokens of one stack are sharded, and which layers read them.

    Tokens are gathered in front of the block that the columns of a region share, or else of the module that holds this
    block (the columns of an adapter share the adapted layer), or else in front of each column. Raises ShardMismatch if
    none of these can be sharded.
    """
    replicated = _replicated_modules(task, stack, stack_regions)
    token_regions = [cut_region for cut_region in stack_regions if not is_inside(cut_region[0].columns[0], replicated)]
    linears = {name for name in task.linears if name.startswith(f"{stack}.")}
    dropout = task.trace.reach_dropout
    random = [name for name in replicated if any(is_inside(layer, [name]) for layer in dropout)]
    if random:
        raise ShardMismatch(
            f"{random[0]} needs all tokens and draws random numbers, which would differ between ranks; set its "
            "dropout to 0"
        )
    first_error: ShardMismatch | None = None
    for levels in (0, 1, None):
        gather_inputs = dict.fromkeys(
            itertools.chain(*(_gather_inputs(stack, region.columns, levels) for region, _, _ in token_regions))
        )
        sequence = SequencePlan(stack, tuple(gather_inputs), tuple(replicated), draws_random=bool(dropout & linears))
        try:
            readers = check_sequence(task, sequence, token_regions, regions)
        except ShardMismatch as error:
            first_error = first_error or error
            continue
        return replace(sequence, column_readers=tuple(sorted(readers.columns))), readers
    assert first_error is not None
    raise first_error


def _gather_inputs(stack: str, columns: Sequence[str], levels: int | None) -> list[str]:
    """Return the modules whose input is gathered: the block of all columns, or the one `levels` above it in the layer.

    Returns each column if `levels` is None, and where the layer itself is that block.
    """
    layer = _layer_of(stack, columns[0])
    block = common_block(columns)
    for _ in range(levels or 0):
        outer = block.rpartition(".")[0]
        block = outer if outer.startswith(f"{layer}.") else block
    return [block] if levels is not None and block.startswith(f"{layer}.") else list(columns)


def _replicated_modules(task: PlanningTask, stack: str, stack_regions: Sequence[CutRegion]) -> list[str]:
    """Return the children of layers that need all tokens: with experts, shared outputs or unsharded attention."""
    prefix = f"{stack}."
    columns = {name for region, _, _ in stack_regions for name in region.columns}
    names = [name for name in task.trace.context.experts if name.startswith(prefix)]
    names += [name for name in task.trace.reach_attention if name.startswith(prefix) and name not in columns]
    for region, _, _ in stack_regions:
        inputs = task.trace.inputs.get(region.rows[0], [])
        # The experts of a list receive some of the tokens, without a batch dimension, or none.
        if region.shared_outputs or len(inputs) != 1 or inputs[0].dim() != HIDDEN_DIMS:
            names.append(region.columns[0])
    return list(dict.fromkeys(_child_of_layer(stack, name) for name in sorted(names)))


# --- the plan with sharded tokens ------------------------------------------------------------------------


def _with_sequence(
    plan: Plan, task: PlanningTask, sequence: SequencePlan, readers: TokenReaders, stack_regions: Sequence[CutRegion]
) -> Plan:
    """Return the plan with the changes for one stack: which layers all-reduce and scatter, which gradients are partial.

    Raises PlanError for a parameter that is tied to one outside of the stack.
    """
    rows = {
        name
        for region, _, _ in stack_regions
        if not is_inside(region.columns[0], sequence.replicated_modules)
        for name in region.rows
    }
    prefix = f"{sequence.stack}."

    def with_sequence(layer: LayerPlan) -> LayerPlan:
        if not layer.module.startswith(prefix):
            return layer
        reads_gathered = layer.module in sequence.column_readers  # the gather's backward sums the gradients
        return replace(
            layer,
            reduce_input_grad=layer.reduce_input_grad and not reads_gathered,
            fused_with="" if reads_gathered else layer.fused_with,
            draws_random=False,
            scatter_output=layer.kind is LayerKind.ROW and layer.module in rows,
        )

    return replace(
        plan,
        layers=tuple(with_sequence(layer) for layer in plan.layers),
        parameters=tuple(
            replace(record, gradient_rule=GradientRule.PARTIAL)
            if _gets_partial_gradient(record, task, sequence, readers, rows)
            else record
            for record in plan.parameters
        ),
    )


def _gets_partial_gradient(
    record: ParameterPlan, task: PlanningTask, sequence: SequencePlan, readers: TokenReaders, rows: set[str]
) -> bool:
    """Return whether a rank's gradient of a replicated parameter comes from its part of the tokens or features only.

    Raises PlanError for a parameter that is tied to one outside of the stack.
    """
    inside = [name.startswith(f"{sequence.stack}.") for name in record.names]
    if not any(inside) or record.cut is not Cut.REPLICATED or is_inside(record.name, sequence.replicated_modules):
        return False
    if not all(inside):
        raise PlanError(
            f"sequence_parallel: {' = '.join(record.names)} is used both inside and outside of {sequence.stack}: its "
            "gradient would be partial inside and complete outside; untie it, or initialize without sequence_parallel"
        )
    module = record.name.rpartition(".")[0]
    if not is_inside(record.name, sequence.gather_inputs) or module in rows:
        return True
    if module in readers.first_layers | readers.behind_rows:
        return True
    layer = _layer_of(sequence.stack, record.name)
    rows_of_layer = {name for name in rows if _layer_of(sequence.stack, name) == layer}
    return bool(task.trace.reach_parameter.get(record.name, set()) & rows_of_layer)
