"""The plan of a model: wishes fitted to what the data flow allows, and checked by a rehearsal.

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
from tpinit.runtime.plan.drafting import Draft, Task, notes_of, records, refusal, written
from tpinit.runtime.plan.fitting import fit_all
from tpinit.runtime.plan.folding import folded
from tpinit.runtime.plan.matrices import experts_of, matrices_of
from tpinit.runtime.plan.records import Plan
from tpinit.runtime.plan.sequences import along_sequence
from tpinit.runtime.plan.stubs import untouched
from tpinit.runtime.plan.styles import Style, Wishes, from_transformers
from tpinit.runtime.plan.vocabulary import Vocabulary, find_vocabulary
from tpinit.runtime.plan.watching import rehearsed_on, watched
from tpinit.runtime.plan.whole import cut_alone

__all__ = ["plan_model"]

_NO_PAIR = "it has no two layers of which the outputs of one feed the other alone"


def plan_model(
    model: nn.Module,
    tp_size: int,
    tp_rank: int,
    wishes: Wishes | None = None,
    example: Mapping[str, Any] | None = None,
    vocabulary: bool = True,
    sequence_parallel: bool = False,
) -> Plan:
    """Return the plan of `model` for one rank of a TP group. Reads the model, changes nothing.

    `wishes` come from a config; without any they are the model's own `tp_plan`, and without that one whatever
    the data flow allows is cut. `example` are keyword arguments of one small forward, for models whose inputs
    can't be told from their config. With `sequence_parallel` tokens are cut between the regions too. With a `tp_size`
    of 1 nothing is cut, and every model is covered.

    Raises PlanError, with everything that is wrong at once, where nothing can be cut, and for gradients or
    storage that a cut would break.
    """
    problems = list(_check_tensors(model))
    if problems:
        raise refusal(problems, tp_size)
    if tp_size == 1:
        return Plan(1, tp_rank, tuple(records(model, Draft())), source="one rank: nothing is cut")
    if wishes is None:
        wishes = from_transformers(model, [*matrices_of(model), *experts_of(model)])
    inputs = rehearsed_on(model, example)
    if inputs is None:
        raise PlanError(
            f"nothing is known of the inputs of a {type(model).__qualname__}, which has no transformers config: "
            "give a small batch of keyword arguments as `example`"
        )
    task = _Wanted(tp_size, tp_rank, wishes, inputs, vocabulary, sequence_parallel)
    found = _plan_folded(model, task)
    if found is None:
        with untouched(model):
            found = _plan(model, task)
    return found.plan


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to be planned."""

    tp_size: int
    tp_rank: int
    wishes: Wishes | None
    inputs: Mapping[str, Any]
    vocabulary: bool
    sequence_parallel: bool


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan, the wishes that it follows, and why each module stays whole that does."""

    plan: Plan
    wishes: Wishes | None
    why: Mapping[str, str]


def _plan_folded(model: nn.Module, wanted: _Wanted) -> _Planned | None:
    """Plan with a few layers of each kind in place of all; None where these can't speak for the others.

    That is where no layers are alike, where the forward reads the place of a layer, where it does not reach every
    matrix that stayed, and where anything is wrong: of that the whole model tells better.
    """
    with folded(model, _told(wanted.wishes)) as folding:
        if not folding.lists:
            return None
        try:
            with untouched(model):
                found = _plan(model, wanted, every=True)
        except Exception:  # whatever it is, it comes again with the whole model, or was the folding's
            return None
        if folding.read:
            return None
    plan = folding.unfold(found.plan, model)
    why = {name: text for one, text in found.why.items() for name in folding.names(one)}
    return _Planned(replace(plan, notes=notes_of(plan.parameters, why, found.wishes)), found.wishes, why)


def _told(wishes: Wishes | None) -> Callable[[str], object]:
    """Return what wishes say of a module, by its name: layers of which they say other things are not alike."""
    if wishes is None:
        return lambda _: None
    styles, kept, why = wishes.styles, wishes.kept, wishes.why
    return lambda name: (styles.get(name), name in kept, why.get(name))


def _plan(model: nn.Module, wanted: _Wanted, every: bool = False) -> _Planned:
    """Plan a model as it is. `every` refuses one whose forward does not reach every matrix."""
    wishes, inputs, tp_size = wanted.wishes, wanted.inputs, wanted.tp_size
    seen = watched(model, inputs)
    matrices = seen.stage.matrices
    if every and not seen.sources.keys() >= matrices.keys():
        raise PlanError("the forward does not reach every matrix")
    draft = Draft()
    kept = wishes.kept if wishes is not None else ()
    draft.why.update(wishes.why if wishes is not None else {})
    head = find_vocabulary(model, matrices, seen, tp_size, kept)
    if not wanted.vocabulary:
        head = Vocabulary(head_names=head.head_names)
    task = Task(model, inputs, seen, matrices, wishes, tp_size, head.head_names)
    fitted = fit_all(task, draft)
    taken = {name for region, _, _ in fitted for name in (*region.columns, *region.rows, *region.shared)}
    # An output head that is gathered is cut by vocabulary, but for a user who says otherwise.
    exact = wishes is not None and wishes.exact
    spared = () if exact and wanted.vocabulary else head.head_names
    taken |= {name for name, _, _ in head.layers} | set(spared)
    alone, unfit = cut_alone(model, matrices, wishes, tp_size, taken)
    draft.why.update(unfit)
    experts = [name for name in seen.stage.experts if wishes is None or wishes.styles.get(name, Style()).experts]
    if not fitted and not alone and not experts:
        if wishes is not None and not exact:
            # The model's own plan names nothing that can be cut: what its data flow allows still may be.
            return _plan(model, replace(wanted, wishes=None), every)
        raise refusal(list(draft.why.items()) or [(type(model).__qualname__, _NO_PAIR)], tp_size)
    plan = written(task, draft, fitted, alone, head, wanted.tp_rank)
    if wanted.sequence_parallel:
        plan = along_sequence(task, fitted, plan)
    return _Planned(plan, wishes, draft.why)


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
