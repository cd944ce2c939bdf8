"""The evidence of each violation as Z3 terms: which given values cause it, in which order (section 4).

It is written over the model's definitions and is meaningful only where the violation holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import z3
from tpinit.spec.model import DTYPES, GROUPS, SIZES, Model
from tpinit.spec.symbols import SIZE_OF
from tpinit.spec.vocabulary import Source, ViolationCode

__all__ = ["Shown", "evidence"]

_C = ViolationCode


@dataclass(frozen=True)
class Shown:
    """One value of the evidence: whether it is shown, its source, and the value."""

    holds: z3.BoolRef
    source: Source
    value: z3.ExprRef


def evidence(model: Model, code: ViolationCode) -> list[Shown]:
    """Return the evidence of a violation, in order."""
    if code is _C.NO_GROUP_SOURCE or code is _C.SIZE_MISMATCH:
        return _given(model, SIZES)
    if code is _C.DTYPE_MISMATCH:
        return _given(model, DTYPES)
    if code is _C.GROUP_AND_MPU:
        return _given(model, (Source.CALL_TP_GROUP, Source.MPU_TP_GROUP))
    if code is _C.SIZE_INVALID:
        return [_invalid(model, source) for source in SIZES]
    if code is _C.GROUP_IDENTITY_MISMATCH:
        return _first_pair(model)
    if code is _C.GROUP_SIZE_MISMATCH:
        return [*_effective_size(model), *(_misfit(model, source) for source in GROUPS)]
    if code is _C.SIZE_NOT_DIVIDING_WORLD:
        return [*_effective_size(model), Shown(z3.BoolVal(True), Source.WORLD_SIZE, model.given_input.world)]
    return []  # NO_TP_INTENT and SIZE_MISSING: nothing was given


def _given(model: Model, sources: Sequence[Source]) -> list[Shown]:
    return [Shown(model.given(source), source, model.value(source)) for source in sources]


def _invalid(model: Model, source: Source) -> Shown:
    value = model.value(source)
    disabling = z3.And(z3.BoolVal(source is Source.CONFIG_AUTOTP_SIZE), value == 0)
    return Shown(z3.And(model.given(source), value < 1, z3.Not(disabling)), source, value)


def _effective_size(model: Model) -> list[Shown]:
    comes_from = model.effective_size.comes_from
    return [Shown(comes_from[source], source, model.value(source)) for source in SIZES]


def _misfit(model: Model, source: Source) -> Shown:
    group = model.value(source)
    return Shown(z3.And(model.given(source), SIZE_OF(group) != model.effective_size.value), source, group)


def _first_pair(model: Model) -> list[Shown]:
    """The first two groups that must be one and are not, in the order of the sources."""
    shown: list[Shown] = []
    earlier: list[z3.BoolRef] = []
    for one, other in combinations(GROUPS, 2):
        if (one, other) == (Source.CALL_TP_GROUP, Source.MPU_TP_GROUP):
            continue
        differ = z3.And(model.given(one), model.given(other), model.value(one) != model.value(other))
        first = z3.And(differ, *(z3.Not(each) for each in earlier))
        earlier.append(differ)
        shown += [Shown(first, one, model.value(one)), Shown(first, other, model.value(other))]
    return shown
