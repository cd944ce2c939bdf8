"""Fitting the regions that a source wishes for: those that are alike, alike; then all of them together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.plan.drafting import Draft, Task
from tpinit.runtime.plan.layouts import Layout
from tpinit.runtime.plan.matrices import Matrix
from tpinit.runtime.plan.regions import Fitted, Unsure, candidates, fit, likeliest
from tpinit.runtime.plan.rehearsal import Adaptation, Mismatch, Region, rehearse
from tpinit.runtime.plan.stubs import in_mode
from tpinit.runtime.plan.styles import Style, Wishes
from tpinit.runtime.plan.trace import Trace

__all__ = ["fit_all", "twins"]


def fit_all(task: Task, draft: Draft) -> list[Fitted]:
    """Fit all regions at once, as it is likely for each; else one by one, those alike alike; else each on its own.

    Raises PlanError where each fits and all together do not.
    """
    stage = task.seen.stage
    with in_mode(task.model, stage.training, stage.modules):
        return _fit_all(task, draft)


def _fit_all(task: Task, draft: Draft) -> list[Fitted]:
    # Most regions fit as is likely: then one rehearsal of all of them is the proof for each.
    with suppress(Unsure, Mismatch):
        return _together(task, _fit_regions(task, draft, rehearsing=False, alike=True))
    with suppress(Mismatch):
        return _together(task, _fit_regions(task, draft, rehearsing=True, alike=True))
    fitted = _fit_regions(task, draft, rehearsing=True, alike=False)
    try:
        return _together(task, fitted)
    except Mismatch as error:
        raise PlanError(
            f"this model can't be cut over {task.tp_size} ranks: each of its blocks can, but together they "
            f"compute something else: {error}"
        ) from error


def _together(task: Task, fitted: list[Fitted]) -> list[Fitted]:
    """Return the regions, if the ranks compute their parts with all of them cut. Raises Mismatch."""
    called = [one for one in fitted if one[0].rows[0] in task.seen.inputs]
    if called:
        rehearse(task.model, task.inputs, task.seen, called, task.tp_size)
    return fitted


def _fit_regions(task: Task, draft: Draft, rehearsing: bool, alike: bool) -> list[Fitted]:
    """Fit every region that is wished for, the heaviest first; each as is likely where it is not rehearsed.

    Raises Unsure, only where it is not.
    """
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
                if rehearsing:
                    known[key] = fit(model, inputs, seen, region, matrices, task.tp_size, fused)
                else:
                    known[key] = likeliest(model, region, matrices, task.tp_size, fused)
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
