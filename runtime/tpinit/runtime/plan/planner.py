"""The plan of a model: wishes fitted to what the data flow allows, and checked by a rehearsal.

Nothing here is a list of model names. A source (`partition_config`, a preset, the model's own `tp_plan`) says
which layers shall be cut; without one, whatever can be cut is. How a layer is cut, what its block must be
told, and that the cut is exact, come from the model itself: see `regions` and `rehearsal`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.plan.examples import example_inputs
from tpinit.runtime.plan.experts import ExpertsFit, fit_experts
from tpinit.runtime.plan.layouts import Layout, Spread, even
from tpinit.runtime.plan.records import BlockPlan, Cut, GradientRule, LayerKind, LayerPlan, ParameterPlan, Plan
from tpinit.runtime.plan.regions import Fitted, candidates, fit
from tpinit.runtime.plan.rehearsal import Adaptation, Mismatch, Region, block_plan, rehearse
from tpinit.runtime.plan.styles import Style, Wishes, from_transformers
from tpinit.runtime.plan.trace import Matrix, Trace, experts_of, matrices_of, trace, untouched
from tpinit.runtime.plan.vocabulary import Vocabulary, find_vocabulary
from tpinit.runtime.plan.whole import Alone, cut_alone

__all__ = ["Draft", "Task", "plan_model", "rehearsed_on", "twins", "watched", "written"]

_LENGTHS = (8, 64, 512)  # tokens, for models that train on a multiple of some length only
_BIG = 1 << 14  # elements of a replicated weight that is worth a note


@dataclass(frozen=True, slots=True)
class _Lie:
    """How a parameter lies over the group."""

    cut: Cut
    dim: int
    spread: Spread


@dataclass(slots=True)
class Draft:
    """A plan in the making."""

    lies: dict[int, _Lie] = field(default_factory=dict)
    layers: list[LayerPlan] = field(default_factory=list)
    blocks: list[BlockPlan] = field(default_factory=list)
    inner: set[str] = field(default_factory=set)
    why: dict[str, str] = field(default_factory=dict)


def plan_model(
    model: nn.Module,
    tp_size: int,
    tp_rank: int,
    wishes: Wishes | None = None,
    example: Mapping[str, Any] | None = None,
    vocabulary: bool = True,
) -> Plan:
    """Return the plan of `model` for one rank of a TP group. Reads the model, changes nothing.

    `wishes` come from a config; without any they are the model's own `tp_plan`, and without that one whatever
    the data flow allows is cut. `example` are keyword arguments of one small forward, for models whose inputs
    can't be told from their config. With a `tp_size` of 1 nothing is cut, and every model is covered.

    Raises PlanError, with everything that is wrong at once, where nothing can be cut, and for gradients or
    storage that a cut would break.
    """
    problems = list(_check_tensors(model))
    if problems:
        raise _refusal(problems, tp_size)
    if tp_size == 1:
        return Plan(1, tp_rank, tuple(_records(model, Draft())), source="one rank: nothing is cut")
    matrices = matrices_of(model)
    if wishes is None:
        wishes = from_transformers(model, [*matrices, *experts_of(model)])
    inputs = rehearsed_on(model, example)
    if inputs is None:
        raise PlanError(
            f"nothing is known of the inputs of a {type(model).__qualname__}, which has no transformers config: "
            "give a small batch of keyword arguments as `example`"
        )
    with untouched(model):
        return _plan(model, tp_size, tp_rank, wishes, inputs, matrices, vocabulary)


def _plan(
    model: nn.Module,
    tp_size: int,
    tp_rank: int,
    wishes: Wishes | None,
    inputs: Mapping[str, Any],
    matrices: Mapping[str, Matrix],
    vocabulary: bool,
) -> Plan:
    seen = watched(model, inputs)
    draft = Draft()
    kept = wishes.kept if wishes is not None else ()
    draft.why.update(wishes.why if wishes is not None else {})
    head = find_vocabulary(model, matrices, seen, tp_size, kept)
    if not vocabulary:
        head = Vocabulary(head_names=head.head_names)
    task = Task(model, inputs, seen, matrices, wishes, tp_size, head.head_names)
    fitted = _fit_all(task, draft)
    taken = {name for region, _, _ in fitted for name in (*region.columns, *region.rows, *region.shared)}
    # An output head that is gathered is cut by vocabulary, but for a user who says otherwise.
    exact = wishes is not None and wishes.exact
    spared = () if exact and vocabulary else head.head_names
    taken |= {name for name, _, _ in head.layers} | set(spared)
    alone, unfit = cut_alone(model, matrices, wishes, tp_size, taken)
    draft.why.update(unfit)
    if not fitted and not alone and not experts_of(model):
        if wishes is not None and not exact:
            # The model's own plan names nothing that can be cut: what its data flow allows still may be.
            return _plan(model, tp_size, tp_rank, None, inputs, matrices, vocabulary)
        raise _refusal(list(draft.why.items()) or [(type(model).__qualname__, _NO_PAIR)], tp_size)
    return written(task, draft, fitted, alone, head, tp_rank)


def watched(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """Return what one run of the model shows, and where it draws random numbers in training."""
    seen = _trace(model, inputs)
    _note_random(model, inputs, seen)
    return seen


def written(
    task: Task, draft: Draft, fitted: Sequence[Fitted], alone: Sequence[Alone], head: Vocabulary, tp_rank: int
) -> Plan:
    """Write down the plan of what was fitted: regions, matrices cut on their own, experts, and the vocabulary."""
    model, seen, matrices, wishes, tp_size = task.model, task.seen, task.matrices, task.wishes, task.tp_size
    for region, layout, adaptation in fitted:
        _draft_region(model, region, layout, adaptation, matrices, draft)
    for one in alone:
        _draft_alone(one, matrices[one.name].module, draft)
    _draft_experts(model, wishes, tp_size, draft)
    _draft_vocabulary(head, tp_size, draft)
    _mark_inner(seen, draft, fitted)
    random = _randomised(model, seen, fitted, tp_size)
    draft.layers = [replace(layer, random=layer.module in random) for layer in draft.layers]
    source = wishes.source if wishes is not None else "structure"
    notes = tuple(_notes(model, draft, wishes))
    return Plan(
        tp_size,
        tp_rank,
        tuple(_records(model, draft)),
        tuple(draft.layers),
        tuple(draft.blocks),
        source,
        notes,
    )


def rehearsed_on(model: nn.Module, example: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the batch to rehearse on: what was given, else the first of the likely ones that the model takes."""
    if example is not None:
        return example
    likely = example_inputs(model, _device(model))
    for inputs in likely[:-1]:
        try:
            with untouched(model):
                trace(model, inputs)
        except Exception:  # another batch may do; of the last one the planner tells what went wrong
            continue
        return inputs
    return likely[-1] if likely else None


def _device(model: nn.Module) -> torch.device:
    for parameter in model.parameters():
        if not parameter.is_meta:
            return parameter.device
    return torch.device("cpu")


def _trace(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    try:
        return trace(model, inputs)
    except Exception as error:
        told = {name: list(one.shape) for name, one in inputs.items() if isinstance(one, torch.Tensor)}
        raise PlanError(
            f"the forward of {type(model).__qualname__} can't be run on a small batch {told}: "
            f"{type(error).__name__}: {str(error)[:300]}; give keyword arguments that it takes as `example`"
        ) from error


def _note_random(model: nn.Module, inputs: Mapping[str, Any], seen: Trace) -> None:
    """Note where random numbers are drawn, in training too. Some models train on longer batches than this one.

    Raises PlanError for a model that takes its seed from the system.
    """
    original, own_seeds = torch.seed, 0

    def seed() -> int:
        nonlocal own_seeds
        own_seeds += 1
        return 0

    torch.seed = seed
    try:
        for length in (0, *_LENGTHS):
            try:
                trained = trace(model, _of_length(inputs, length), training=True)
            except Exception:  # another length may do
                continue
            break
        else:
            # What it draws in evaluation mode was seen; what it drops out in training was not.
            seen.randomised |= set(seen.sources) if any(_drops_out(module) for module in model.modules()) else set()
            return
    finally:
        torch.seed = original
    if own_seeds:
        raise PlanError(
            f"the forward of {type(model).__qualname__} seeds its random numbers itself, with torch.seed(), which is "
            "another number on each rank: the ranks of a group would compute different things"
        )
    seen.randomised |= trained.randomised
    seen.chancy |= trained.chancy


def _of_length(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return a batch whose sequences [rows, tokens] have another length, in tokens; 0 for their own."""
    return {
        key: one.repeat(1, length)[:, :length] if length and isinstance(one, torch.Tensor) and one.dim() == 2 else one
        for key, one in inputs.items()
    }


def _drops_out(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module.p > 0


# --- regions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Task:
    """What the regions of a model are fitted to."""

    model: nn.Module
    inputs: Mapping[str, Any]
    seen: Trace
    matrices: Mapping[str, Matrix]
    wishes: Wishes | None
    tp_size: int
    heads: tuple[str, ...]


def _fit_all(task: Task, draft: Draft) -> list[Fitted]:
    """Fit regions that are alike alike; where that does not hold together, each on its own.

    Raises PlanError where each fits and all together do not.
    """
    for alike in (True, False):
        fitted = _fit_regions(task, draft, alike)
        called = [one for one in fitted if one[0].rows[0] in task.seen.inputs]
        try:
            if called:
                rehearse(task.model, task.inputs, task.seen, called, task.tp_size)
        except Mismatch as error:
            if not alike:
                raise PlanError(
                    f"this model can't be cut over {task.tp_size} ranks: each of its blocks can, but together they "
                    f"compute something else: {error}"
                ) from error
        else:
            break
    return fitted


def _fit_regions(task: Task, draft: Draft, alike: bool) -> list[Fitted]:
    """Fit every region that is wished for, the heaviest first."""
    model, inputs, seen, matrices = task.model, task.inputs, task.seen, task.matrices
    known: dict[tuple[Any, ...], tuple[Layout, Adaptation] | Mismatch] = {}
    fitted: list[Fitted] = []
    taken: set[str] = set()
    for region in candidates(matrices, seen, task.heads):
        names = (*region.columns, *region.rows)
        if taken.intersection(names) or not _wished(region, task.wishes):
            continue
        fused = _fused(region, task.wishes)
        key = (*_likeness(model, region, matrices), *fused.values()) if alike else (region.rows,)
        if key not in known:
            try:
                known[key] = fit(model, inputs, seen, region, matrices, task.tp_size, fused)
            except Mismatch as error:
                known[key] = error
        found = known[key]
        if isinstance(found, Mismatch):
            draft.why.update(dict.fromkeys(names, str(found)))
            continue
        layout, adaptation = found
        fitted.append((region, _renamed(layout, region), adaptation))
        taken.update(names)
    return fitted + twins(model, fitted, matrices, seen)


def _wished(region: Region, wishes: Wishes | None) -> bool:
    if wishes is None:
        return True
    columns = [wishes.styles.get(name, Style()) for name in region.columns]
    rows = [wishes.styles.get(name, Style()) for name in region.rows]
    adapters = [".lora_" in name for name in (*region.columns, *region.rows)]
    if any(adapters):  # the adapters of a layer follow it
        return True
    if wishes.exact and any(style.whole for style in (*columns, *rows)):
        return False
    return all(style.column for style in columns) and all(style.row for style in rows)


def _fused(region: Region, wishes: Wishes | None) -> dict[str, Style]:
    """Return what a source says of the matrices of a region, and so of the parts that are fused in each."""
    styles = wishes.styles if wishes is not None else {}
    return {name: styles.get(name, Style()) for name in (*region.columns, *region.rows)}


def _likeness(model: nn.Module, region: Region, matrices: Mapping[str, Matrix]) -> tuple[Any, ...]:
    """Return what two regions have in common that can be fitted alike: the block's type and numbers, and shapes."""
    block = model.get_submodule(region.block)
    start = len(region.block) + 1 if region.block else 0
    shapes = tuple(
        (name[start:], matrices[name].in_features, matrices[name].out_features)
        for name in (*region.columns, *region.rows)
    )
    numbers = tuple(
        sorted((name, one) for name, one in vars(block).items() if type(one) is int and "layer" not in name)
    )
    inside = tuple(sorted(name for name, _ in block.named_modules()))
    return type(block), shapes, len(region.columns), region.attends, numbers, inside


def _renamed(layout: Layout, region: Region) -> Layout:
    """Return the layout of a region that was fitted under the names of another that is like it."""
    if set(layout.columns) == set(region.columns):
        return layout
    spreads = list(layout.columns.values())
    return Layout(dict(zip(region.columns, spreads, strict=True)), layout.row, layout.heads)


def twins(model: nn.Module, fitted: Sequence[Fitted], matrices: Mapping[str, Matrix], seen: Trace) -> list[Fitted]:
    """Return the regions of blocks that the small batch did not reach, like one that it did (experts in a list)."""

    def pattern(name: str) -> str:
        return re.sub(r"\d+", "*", name)

    known = {(pattern(one[0].block), type(model.get_submodule(one[0].block))): one for one in fitted}
    reached = {one[0].block for one in fitted}
    found = []
    for name, module in model.named_modules():
        like = known.get((pattern(name), type(module)))
        if like is None or name in reached:
            continue
        region, layout, adaptation = like
        columns = tuple(name + one[len(region.block) :] for one in region.columns)
        rows = tuple(name + one[len(region.block) :] for one in region.rows)
        if any(one not in matrices or one in seen.sources for one in (*columns, *rows)):
            continue
        alike = all(
            matrices[mine].out_features == matrices[theirs].out_features
            and matrices[mine].in_features == matrices[theirs].in_features
            for mine, theirs in zip((*columns, *rows), (*region.columns, *region.rows), strict=True)
        )
        if alike and not region.shared:
            spreads = {mine: layout.columns[theirs] for mine, theirs in zip(columns, region.columns, strict=True)}
            twin = Region(name, columns, rows, (), region.attends)
            found.append((twin, Layout(spreads, layout.row, layout.heads), adaptation))
    return found


def _draft_region(
    model: nn.Module,
    region: Region,
    layout: Layout,
    adaptation: Adaptation,
    matrices: Mapping[str, Matrix],
    draft: Draft,
) -> None:
    for name in region.columns:
        matrix, spread = matrices[name], layout.columns[name]
        draft.lies[id(matrix.module.weight)] = _Lie(Cut.COLUMN, matrix.out_dim, spread)
        bias = getattr(matrix.module, "bias", None)
        if bias is not None:
            draft.lies[id(bias)] = _Lie(Cut.COLUMN, 0, spread)
        # What a shared matrix gives collects its gradient where it leaves that matrix: once, for all readers.
        draft.layers.append(LayerPlan(name, LayerKind.COLUMN, entry=name not in region.fed))
    for name in region.rows:
        matrix = matrices[name]
        draft.lies[id(matrix.module.weight)] = _Lie(Cut.ROW, 1 - matrix.out_dim, layout.row)
        draft.layers.append(LayerPlan(name, LayerKind.ROW))
    draft.layers += [LayerPlan(name, LayerKind.SHARED_OUTPUT) for name in region.shared]
    block = model.get_submodule(region.block)
    for name in adaptation.parameters:
        assert layout.heads is not None
        ranks = tuple((held[0],) for held in layout.heads.ranks)
        draft.lies[id(getattr(block, name))] = _Lie(Cut.COLUMN, 0, Spread(ranks, 1))
    if adaptation != Adaptation(parameters=adaptation.parameters):
        draft.blocks.append(block_plan(region.block, layout, adaptation))
    for name in adaptation.outputs:
        draft.inner.add(f"{region.block}.{name}.weight" if region.block else f"{name}.weight")


def _draft_alone(one: Alone, module: nn.Module, draft: Draft) -> None:
    """Cut one matrix on its own: of a gathered column the bias too, of a split row the weight alone."""
    column = one.kind is LayerKind.COLUMN_GATHER
    draft.lies[id(module.weight)] = _Lie(Cut.COLUMN if column else Cut.ROW, one.dim, one.spread)
    bias = getattr(module, "bias", None)
    if column and bias is not None:
        draft.lies[id(bias)] = _Lie(Cut.COLUMN, 0, one.spread)
    draft.layers.append(LayerPlan(one.name, one.kind, one.spread.ranks))


def _mark_inner(seen: Trace, draft: Draft, fitted: Sequence[Fitted]) -> None:
    """Mark the parameters that meet features which are cut: each rank has a part of their gradient."""
    cut = {name for region, _, _ in fitted for name in (*region.columns, *region.shared)}
    for name, met in seen.meets.items():
        if met & cut:
            draft.inner.add(name)


# --- experts, vocabulary ---------------------------------------------------------------------------------


def _draft_experts(model: nn.Module, wishes: Wishes | None, tp_size: int, draft: Draft) -> None:
    known: dict[tuple[Any, ...], ExpertsFit | Mismatch] = {}
    for name, module in experts_of(model).items():
        if wishes is not None and not wishes.styles.get(name, Style()).experts:
            continue
        key = (type(module), *(tuple(one.shape) for one in module.parameters(recurse=False)))
        if key not in known:
            try:
                known[key] = fit_experts(module, tp_size)
            except Mismatch as error:
                known[key] = error
        found = known[key]
        if isinstance(found, Mismatch):
            draft.why[name] = str(found)
            continue
        for parameter, (cut, dim, spread) in found.spreads.items():
            draft.lies[id(getattr(module, parameter))] = _Lie(cut, dim, spread)
        draft.layers.append(LayerPlan(name, LayerKind.EXPERTS))
        if found.numbers:
            draft.blocks.append(BlockPlan(name, numbers=found.numbers))


def _draft_vocabulary(head: Vocabulary, tp_size: int, draft: Draft) -> None:
    for name, parameter in head.parameters:
        if id(parameter) not in draft.lies:
            draft.lies[id(parameter)] = _Lie(Cut.VOCABULARY, 0, even(parameter.shape[0], tp_size))
        del name
    for name, kind, size in head.layers:
        draft.layers.append(LayerPlan(name, kind, even(size, tp_size).ranks))


# --- records ---------------------------------------------------------------------------------------------


def _records(model: nn.Module, draft: Draft) -> Iterator[ParameterPlan]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for _, parameter in model.named_parameters():
        shape, tied = tuple(parameter.shape), tuple(names[id(parameter)])
        lie = draft.lies.get(id(parameter))
        if lie is None:
            rule = GradientRule.SUM if draft.inner & set(tied) else GradientRule.SAME
            why = next((draft.why[one] for one in _owners(tied) if one in draft.why), "")
            yield ParameterPlan(tied, shape, Cut.REPLICATED, None, rule, why=why)
        else:
            spread = lie.spread
            rule = GradientRule.SUM if spread.shared else GradientRule.OWN
            slices = () if spread.unit else spread.ranks
            yield ParameterPlan(tied, shape, lie.cut, lie.dim, rule, spread.unit or 1, spread.blocks, slices)


def _owners(names: Sequence[str]) -> list[str]:
    return [name.rpartition(".")[0] for name in names]


def _notes(model: nn.Module, draft: Draft, wishes: Wishes | None) -> Iterator[str]:
    if wishes is not None:
        if wishes.unmatched:
            yield f"nothing in the model matches {', '.join(wishes.unmatched)} of {wishes.source}"
        if wishes.unknown:
            yield f"{wishes.source} has styles that are not known and not followed: {', '.join(wishes.unknown)}"
        yield from wishes.notes
    reasons: dict[str, list[str]] = {}
    wished = {name for name, style in wishes.styles.items() if style.cuts} if wishes is not None else set()
    for name, parameter in model.named_parameters():
        owner = name.rpartition(".")[0]
        told = parameter.numel() >= _BIG or (wishes is not None and wishes.exact and owner in wished)
        if parameter.dim() > 1 and told and id(parameter) not in draft.lies:
            why = draft.why.get(owner, _NO_PARTNER if owner in wished else "no rule cuts it")
            reasons.setdefault(why, []).append(name)
    for why, found in reasons.items():
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        yield f"whole on every rank: {', '.join(found[:3])}{more}: {why}"


# --- checks ----------------------------------------------------------------------------------------------


def _randomised(model: nn.Module, seen: Trace, fitted: Sequence[Fitted], tp_size: int) -> set[str]:
    """Return the matrices of regions inside which a model in training drops out.

    Raises PlanError where adapters of such a region drop out too: their dropout is outside, and drawn in between.
    """
    found: set[str] = set()
    problems = []
    for region, _, _ in fitted:
        if seen.randomised.intersection(region.columns):
            found.update(region.columns, region.rows)
            block = model.get_submodule(region.block)
            problems += [
                (f"{region.block}.{name}", "dropout of an adapter beside dropout on cut features; set one of them to 0")
                for name, one in block.named_modules()
                if "lora_dropout" in name and isinstance(one, nn.Dropout) and one.p
            ]
    if problems:
        raise _refusal(problems, tp_size)
    return found


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


def _refusal(problems: Sequence[tuple[str, str]], tp_size: int) -> PlanError:
    by_reason: dict[str, list[str]] = {}
    for name, reason in problems:
        by_reason.setdefault(reason, []).append(name)
    lines = [f"this model can't be cut over {tp_size} ranks:"]
    for reason, names in by_reason.items():
        lines.append(f"  {', '.join(names)}: {reason}")
    return PlanError("\n".join(lines), (name for name, _ in problems))


_NO_PAIR = "it has no two layers of which the outputs of one feed the other alone"

_NO_PARTNER = "it can only be cut together with layers that read it, or that it reads, and not with those that are"
