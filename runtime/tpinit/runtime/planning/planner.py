"""Plans a model: finds the requested layers that can be sharded exactly, checked by a dry run, and builds the plan.

No list of model names decides. A source (`partition_config`, a preset, the model's own `tp_plan`) says which layers are
to be sharded; without a source, every layer that can be is. How a layer is sharded, how its block is patched, and that
the result is exact follow from the model: see `partition.regions` and `check.dry_run`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.attachments import (
    Attachments,
    find_attachments,
    global_problems,
    is_replaced,
    parameter_type_problems,
)
from tpinit.runtime.planning.analysis.fake_forward import without_hooks
from tpinit.runtime.planning.analysis.layer_folding import fold_layers
from tpinit.runtime.planning.analysis.linears import find_experts, find_linears
from tpinit.runtime.planning.analysis.trace import Trace
from tpinit.runtime.planning.analysis.train_trace import dry_run_inputs, trace_training
from tpinit.runtime.planning.analysis.wrapped_models import tensor_kind_problems, wrapper_problems
from tpinit.runtime.planning.build import PlanDraft, PlanningTask, build_plan, parameter_plans, plan_error, plan_notes
from tpinit.runtime.planning.check.search import fit_regions
from tpinit.runtime.planning.check.sequence_parallel import add_sequence_parallel
from tpinit.runtime.planning.check.visibility import blocked_modules, check_records, check_visibility
from tpinit.runtime.planning.partition.regions import CutRegion
from tpinit.runtime.planning.partition.standalone import standalone_shards
from tpinit.runtime.planning.partition.vocabulary import Vocabulary, find_vocabulary
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest
from tpinit.runtime.planning.requests.tp_plan import request_from_tp_plan
from tpinit.runtime.planning.schema import Plan

__all__ = ["plan_model"]

_NO_PAIR = "it has no column-parallel/row-parallel pair: no linear layer feeds another one and nothing else"


def plan_model(
    model: nn.Module,
    tp_size: int,
    tp_rank: int,
    request: PlanRequest | None = None,
    example: Mapping[str, Any] | None = None,
    vocabulary: bool = True,
    sequence_parallel: bool = False,
) -> Plan:
    """Return the plan of `model` for one rank of a TP group. Reads the model, changes nothing.

    `request` comes from a config. Without one the model's own `tp_plan` is the request, and without that one too every
    layer is sharded that the data flow allows. `example` are keyword arguments of one small forward, for models whose
    inputs their config does not describe. `vocabulary` allows a vocab-parallel embedding and output head. With
    `sequence_parallel` the tokens are sharded between the regions too. With a `tp_size` of 1 every parameter is
    replicated, and every model can be planned.

    Raises PlanError, with every problem at once, if nothing can be sharded, and for parameters that have a gradient or
    share memory, which sharding would break.
    """
    problems = list(wrapper_problems(model)) or list(parameter_type_problems(model))
    if tp_size > 1 and not problems:
        problems += [*tensor_kind_problems(model), *global_problems()]
    problems = problems or list(_tensor_problems(model))
    if problems:
        raise plan_error(problems, tp_size)
    if tp_size == 1:
        return Plan(1, tp_rank, tuple(parameter_plans(model, PlanDraft())), source="one rank: nothing is cut")
    if request is None:
        request = request_from_tp_plan(model, [*find_linears(model), *find_experts(model)])
    inputs = dry_run_inputs(model, example)
    if inputs is None:
        raise PlanError(
            f"a {type(model).__qualname__} has no transformers config that describes its inputs: "
            "give a small batch of keyword arguments as `example`"
        )
    options = _Options(tp_size, tp_rank, request, inputs, vocabulary, sequence_parallel, find_attachments(model))
    planned = _plan_folded(model, options)
    if planned is None:
        with without_hooks(model):
            planned = _plan_visible(model, options)
    check_records(planned.plan, model)
    return planned.plan


def _plan_visible(model: nn.Module, options: _Options) -> _Planned:
    """Plan the whole model. A linear layer that computes something of its own runs as it is, and is never sharded.

    Raises PlanError, which names the layer, if such a layer would be sharded were it a plain linear layer.
    """
    planned = _plan(model, options)
    opaque = planned.trace.context.linears.keys() & options.attachments.overrides.keys()
    return _plan(model, options, opaque=opaque) if opaque else planned


@dataclass(frozen=True, slots=True)
class _Options:
    """The arguments of `plan_model` but for the model, with the inputs of the dry run."""

    tp_size: int
    tp_rank: int
    request: PlanRequest | None
    inputs: Mapping[str, Any]
    vocabulary: bool
    sequence_parallel: bool
    attachments: Attachments


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan, its trace and request, and the reason of every module that stays replicated, by module name."""

    plan: Plan
    trace: Trace
    request: PlanRequest | None
    reasons: Mapping[str, str]


def _plan_folded(model: nn.Module, options: _Options) -> _Planned | None:
    """Plan the model while two layers of each kind represent all of them; None if they can't.

    They can't if no layers are similar, if the forward reads the index of a layer, if it does not reach every linear
    layer that is left, or if the model has code that is not known. After any error too the whole model is planned: its
    error names all layers. A model with hooks or replaced methods is planned whole, because similar layers may differ
    in them.
    """
    attachments = options.attachments
    if attachments.hooked or attachments.gradient_hooks or _has_linear_overrides(model, attachments):
        return None
    with fold_layers(model, _request_of(options.request), options.inputs) as folding:
        if not folding.represented:
            return None
        try:
            with without_hooks(model):
                folded = _plan(model, options, must_reach_all=True)
        except Exception:  # planning the whole model raises it again, unless the folding caused it
            return None
        if folding.index_reads:
            return None
    plan = folding.unfold(folded.plan, model)
    reasons = {full_name: reason for name, reason in folded.reasons.items() for full_name in folding.full_names(name)}
    notes = plan_notes(plan.parameters, reasons, folded.request)
    return _Planned(replace(plan, notes=notes), folded.trace, folded.request, reasons)


def _has_linear_overrides(model: nn.Module, attachments: Attachments) -> bool:
    """Return whether a module that a fake forward replaces, or a part of one, computes something of its own."""
    experts = [f"{name}." for name in find_experts(model)]
    return any(
        is_replaced(model.get_submodule(name)) or f"{name}.".startswith(tuple(experts))
        for name in attachments.overrides
    )


def _request_of(request: PlanRequest | None) -> Callable[[str], object]:
    """Return a function from a module's name to what the request says about it; similar layers must agree in that."""
    if request is None:
        return lambda _: None
    return lambda name: (request.layers.get(name), name in request.replicated, request.reasons.get(name))


def _plan(
    model: nn.Module, options: _Options, *, must_reach_all: bool = False, opaque: Collection[str] = ()
) -> _Planned:
    """Plan the model with the layers that it has now. Raises PlanError.

    `must_reach_all` raises it also if the forward does not reach every linear layer. `opaque` are linear layers that
    run as they are, and stay replicated.
    """
    request = options.request
    trace = trace_training(model, options.inputs, options.attachments.hooked, opaque)
    linears = trace.context.linears
    if must_reach_all and not trace.sources.keys() >= linears.keys():
        raise PlanError("the forward does not reach every linear layer")
    draft = PlanDraft(reasons=dict(request.reasons) if request is not None else {})
    blocked = blocked_modules(model, trace)
    draft.reasons.update(blocked)
    replicated = {*(request.replicated if request is not None else ()), *blocked}
    vocabulary = find_vocabulary(model, linears, trace, options.tp_size, replicated)
    if not options.vocabulary:
        vocabulary = Vocabulary(head_names=vocabulary.head_names)
    task = PlanningTask(model, options.inputs, trace, linears, request, options.tp_size, vocabulary.head_names, blocked)
    regions = fit_regions(task, draft)
    taken = _taken(task, regions, vocabulary, options.vocabulary)
    standalone, refused = standalone_shards(model, linears, request, options.tp_size, taken)
    draft.reasons.update(refused)
    experts = [
        name
        for name in trace.context.experts
        if name not in blocked and (request is None or request.layers.get(name, LayerRequest()).experts)
    ]
    if not regions and not standalone and not experts:
        if request is not None and not request.from_user:
            # The model's own tp_plan names nothing that can be sharded: the data flow alone may allow more.
            return _plan(model, replace(options, request=None), must_reach_all=must_reach_all, opaque=opaque)
        raise plan_error(list(draft.reasons.items()) or [(type(model).__qualname__, _NO_PAIR)], options.tp_size)
    plan = build_plan(task, draft, regions, standalone, vocabulary, options.tp_rank)
    if options.sequence_parallel:
        plan = add_sequence_parallel(task, regions, plan)
    check_visibility(plan, options.attachments, trace)
    return _Planned(plan, trace, request, draft.reasons)


def _taken(
    task: PlanningTask, regions: Sequence[CutRegion], vocabulary: Vocabulary, shard_vocabulary: bool
) -> set[str]:
    """Return the layers that are not sharded standalone: those of regions and of the vocabulary, and most output heads.

    A `tp_plan` that gathers the output of the head means a vocab-parallel head. Only a user's own request shards the
    head standalone, and only if the vocabulary may be sharded at all.
    """
    taken = {name for region, _, _ in regions for name in (*region.columns, *region.rows, *region.shared_outputs)}
    taken.update(name for name, _, _ in vocabulary.layers)
    taken.update(task.blocked)
    from_user = task.request is not None and task.request.from_user
    if not (from_user and shard_vocabulary):
        taken.update(vocabulary.head_names)
    return taken


def _tensor_problems(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the name and the problem of every parameter that has a gradient or shares memory with another one."""
    holders: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.grad is not None:
            yield name, "it already has a gradient: call model.zero_grad() before initialize"
        if parameter.numel():
            other = holders.setdefault(parameter.untyped_storage().data_ptr(), name)
            if other != name:
                yield name, f"it shares memory with {other} but is another Parameter: tie them by using one Parameter"
