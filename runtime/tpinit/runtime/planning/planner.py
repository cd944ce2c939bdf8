"""The plan of a model: request fitted to what the data flow allows, and checked by a rehearsal.

Nothing here is a list of model names. A source (`partition_config`, a preset, the model's own `tp_plan`) says
which layers shall be cut; without one, whatever can be cut is. How a layer is cut, what its block must be
told, and that the cut is exact, come from the model itself: see `regions` and `rehearsal`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.fake_forward import without_hooks
from tpinit.runtime.planning.analysis.layer_folding import fold_layers
from tpinit.runtime.planning.analysis.linears import find_experts, find_linears
from tpinit.runtime.planning.analysis.train_trace import dry_run_inputs, trace_training
from tpinit.runtime.planning.build import PlanDraft, PlanningTask, build_plan, parameter_plans, plan_error, plan_notes
from tpinit.runtime.planning.check.search import fit_regions
from tpinit.runtime.planning.check.sequence_parallel import add_sequence_parallel
from tpinit.runtime.planning.partition.standalone import standalone_shards
from tpinit.runtime.planning.partition.vocabulary import Vocabulary, find_vocabulary
from tpinit.runtime.planning.requests.request import LayerRequest, PlanRequest
from tpinit.runtime.planning.requests.tp_plan import request_from_tp_plan
from tpinit.runtime.planning.schema import Plan

__all__ = ["plan_model"]

_NO_PAIR = "it has no two layers of which the outputs of one feed the other alone"


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

    `request` come from a config; without any they are the model's own `tp_plan`, and without that one whatever
    the data flow allows is cut. `example` are keyword arguments of one small forward, for models whose inputs
    can't be told from their config. With `sequence_parallel` tokens are cut between the regions too. With a `tp_size`
    of 1 nothing is cut, and every model is covered.

    Raises PlanError, with everything that is wrong at once, where nothing can be cut, and for gradients or
    storage that a cut would break.
    """
    problems = list(_check_tensors(model))
    if problems:
        raise plan_error(problems, tp_size)
    if tp_size == 1:
        return Plan(1, tp_rank, tuple(parameter_plans(model, PlanDraft())), source="one rank: nothing is cut")
    if request is None:
        request = request_from_tp_plan(model, [*find_linears(model), *find_experts(model)])
    inputs = dry_run_inputs(model, example)
    if inputs is None:
        raise PlanError(
            f"nothing is known of the inputs of a {type(model).__qualname__}, which has no transformers config: "
            "give a small batch of keyword arguments as `example`"
        )
    task = _Wanted(tp_size, tp_rank, request, inputs, vocabulary, sequence_parallel)
    found = _plan_folded(model, task)
    if found is None:
        with without_hooks(model):
            found = _plan(model, task)
    return found.plan


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to be planned."""

    tp_size: int
    tp_rank: int
    request: PlanRequest | None
    inputs: Mapping[str, Any]
    vocabulary: bool
    sequence_parallel: bool


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan, the request that it follows, and why each module stays whole that does."""

    plan: Plan
    request: PlanRequest | None
    why: Mapping[str, str]


def _plan_folded(model: nn.Module, wanted: _Wanted) -> _Planned | None:
    """Plan with a few layers of each kind in place of all; None where these can't speak for the others.

    That is where no layers are alike, where the forward reads the place of a layer, where it does not reach every
    matrix that stayed, and where anything is wrong: of that the whole model tells better.
    """
    with fold_layers(model, _told(wanted.request)) as folding:
        if not folding.represented:
            return None
        try:
            with without_hooks(model):
                found = _plan(model, wanted, every=True)
        except Exception:  # whatever it is, it comes again with the whole model, or was the folding's
            return None
        if folding.index_reads:
            return None
    plan = folding.unfold(found.plan, model)
    why = {name: text for one, text in found.why.items() for name in folding.full_names(one)}
    return _Planned(replace(plan, notes=plan_notes(plan.parameters, why, found.request)), found.request, why)


def _told(request: PlanRequest | None) -> Callable[[str], object]:
    """Return what request say of a module, by its name: layers of which they say other things are not alike."""
    if request is None:
        return lambda _: None
    styles, kept, why = request.layers, request.replicated, request.reasons
    return lambda name: (styles.get(name), name in kept, why.get(name))


def _plan(model: nn.Module, wanted: _Wanted, every: bool = False) -> _Planned:
    """Plan a model as it is. `every` refuses one whose forward does not reach every matrix."""
    request, inputs, tp_size = wanted.request, wanted.inputs, wanted.tp_size
    seen = trace_training(model, inputs)
    matrices = seen.context.linears
    if every and not seen.sources.keys() >= matrices.keys():
        raise PlanError("the forward does not reach every matrix")
    draft = PlanDraft()
    kept = request.replicated if request is not None else ()
    draft.reasons.update(request.reasons if request is not None else {})
    head = find_vocabulary(model, matrices, seen, tp_size, kept)
    if not wanted.vocabulary:
        head = Vocabulary(head_names=head.head_names)
    task = PlanningTask(model, inputs, seen, matrices, request, tp_size, head.head_names)
    fitted = fit_regions(task, draft)
    taken = {name for region, _, _ in fitted for name in (*region.columns, *region.rows, *region.shared_outputs)}
    # An output head that is gathered is cut by vocabulary, but for a user who says otherwise.
    exact = request is not None and request.from_user
    spared = () if exact and wanted.vocabulary else head.head_names
    taken |= {name for name, _, _ in head.layers} | set(spared)
    alone, unfit = standalone_shards(model, matrices, request, tp_size, taken)
    draft.reasons.update(unfit)
    experts = [
        name for name in seen.context.experts if request is None or request.layers.get(name, LayerRequest()).experts
    ]
    if not fitted and not alone and not experts:
        if request is not None and not exact:
            # The model's own plan names nothing that can be cut: what its data flow allows still may be.
            return _plan(model, replace(wanted, request=None), every)
        raise plan_error(list(draft.reasons.items()) or [(type(model).__qualname__, _NO_PAIR)], tp_size)
    plan = build_plan(task, draft, fitted, alone, head, wanted.tp_rank)
    if wanted.sequence_parallel:
        plan = add_sequence_parallel(task, fitted, plan)
    return _Planned(plan, request, draft.reasons)


def _check_tensors(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield what would break under any cut: tensors that are shared, or already in use."""
    holders: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if parameter.grad is not None:
            yield name, "it already has a gradient: call model.zero_grad() before initialize"
        if parameter.numel():
            other = holders.setdefault(parameter.untyped_storage().data_ptr(), name)
            if other != name:
                yield name, f"it shares memory with {other} but is another Parameter: tie them by one Parameter"
