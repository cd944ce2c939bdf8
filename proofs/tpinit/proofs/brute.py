"""Brute force, the third oracle: every input of a small domain, evaluated term by term, without a solver.

The domain is the product of all ways to give or omit each field, with few values each. This module's own
interpreter of the model's operators evaluates a term over all inputs at once, one NumPy column per symbol.
A refutation is final; a confirmation holds within the bounds stated in `BOUNDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache, reduce
from itertools import combinations, product
from typing import Any

import numpy as np
import z3
from tpinit.proofs.claims import CheckResult, Claim, Verdict
from tpinit.spec.model import SIZE_OF, Symbols

__all__ = ["BOUNDS", "Columns", "decide_all", "domain", "evaluate", "why_not"]

Columns = dict[str, Any]

SIZES, GROUP_SIZES, WORLDS, DTYPES, GROUPS = (-1, 0, 1, 2), (1, 2), (2, 3), (0, 1), (0, 1)
BOUNDS = (
    f"sizes in {SIZES}, worlds in {WORLDS}, {len(DTYPES)} dtypes, {len(GROUPS)} groups of sizes in {GROUP_SIZES}; for "
    "claims about two inputs, sizes in (0, 2), one dtype, one group"
)

_OPERATORS: Mapping[int, Callable[..., Any]] = {
    z3.Z3_OP_AND: lambda *parts: reduce(np.logical_and, parts),
    z3.Z3_OP_OR: lambda *parts: reduce(np.logical_or, parts, np.False_),
    z3.Z3_OP_NOT: np.logical_not,
    z3.Z3_OP_IMPLIES: lambda one, other: np.logical_or(np.logical_not(one), other),
    z3.Z3_OP_EQ: np.equal,
    z3.Z3_OP_ITE: np.where,
    z3.Z3_OP_LT: np.less,
    z3.Z3_OP_LE: np.less_equal,
    z3.Z3_OP_GT: np.greater,
    z3.Z3_OP_GE: np.greater_equal,
    z3.Z3_OP_ADD: lambda *parts: reduce(np.add, parts),
    z3.Z3_OP_SUB: np.subtract,
    z3.Z3_OP_MUL: lambda *parts: reduce(np.multiply, parts),
}


def evaluate(term: z3.ExprRef, columns: Columns, known: dict[int, Any]) -> Any:
    """Return the value of a term in every row of the columns. `known` caches values by the id of the term.

    Raises ValueError for an operator or a symbol that this interpreter does not support.
    """
    key = term.get_id()
    if key not in known:
        known[key] = _value(term, columns, known)
    return known[key]


def _value(term: z3.ExprRef, columns: Columns, known: dict[int, Any]) -> Any:
    if z3.is_int_value(term):
        return np.int64(term.as_long())
    if z3.is_true(term) or z3.is_false(term):
        return np.bool_(z3.is_true(term))
    kind, parts = term.decl().kind(), [evaluate(part, columns, known) for part in term.children()]
    if kind in _OPERATORS:
        return _OPERATORS[kind](*parts)
    if kind == z3.Z3_OP_DISTINCT:
        return reduce(np.logical_and, (np.not_equal(one, other) for one, other in combinations(parts, 2)))
    if kind == z3.Z3_OP_MOD:
        # SMT-LIB leaves division by 0 undefined, so the model never depends on its value: use 0.
        return np.where(parts[1] == 0, 0, np.mod(parts[0], np.where(parts[1] == 0, 1, np.abs(parts[1]))))
    if kind == z3.Z3_OP_DT_CONSTRUCTOR:
        return np.int64(_members(term.sort()).index(term.decl().name()))
    if term.decl().eq(SIZE_OF):
        sizes = columns["size_of"]
        return reduce(np.add, (sizes[:, group] * (parts[0] == group) for group in range(sizes.shape[1])))
    if kind == z3.Z3_OP_UNINTERPRETED and not parts and str(term) in columns:
        return columns[str(term)]
    raise ValueError(f"the small domain does not support {term.decl()}")


def _members(sort: z3.DatatypeSortRef) -> list[str]:
    return [sort.constructor(place).name() for place in range(sort.num_constructors())]


_COLUMNS = (
    *("tpi", "call_size", "call_dtype"),
    *("section", "autotp_given", "autotp", "alias_given", "alias", "dtype_given", "dtype", "cgroup_given", "cgroup"),
    *("tpg", "call_group", "precision_given", "precision", "mpu", "mpu_group", "mesh", "mesh_group", "world"),
)
_BOOLEANS = frozenset(item.name for item in fields(Symbols) if str(item.type) == "z3.BoolRef")


def _maybe(values: Sequence[int]) -> list[tuple[int, int]]:
    return [(0, 0), *((1, value) for value in values)]


def _table(parts: Sequence[Sequence[tuple[int, ...]]]) -> Any:
    """Return the product of the parts as a table, one combination per row."""
    columns = [np.array(part, dtype=np.int16) for part in parts]
    picks = np.indices([len(part) for part in columns]).reshape(len(columns), -1)
    return np.hstack([part[pick] for part, pick in zip(columns, picks, strict=True)])


def _named(table: Any, suffix: str = "") -> Columns:
    return {
        name + suffix: table[:, place].astype(bool) if name in _BOOLEANS else table[:, place]
        for place, name in enumerate(_COLUMNS)
    }


def _flat(*parts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [tuple(value for part in combination for value in part) for combination in product(*parts)]


@lru_cache(maxsize=1)
def domain() -> Columns:
    """Return every input of the small domain, one per row. An absent field has a single value.

    A0 is not assumed: some inputs have a call's group and no call.
    """
    calls = [(0, 0, 0), *((1, size, dtype) for size in SIZES for dtype in DTYPES)]
    sections: list[tuple[int, ...]] = [(0,) * 9]
    sections += _flat([(1,)], _maybe(SIZES), _maybe(SIZES), _maybe(DTYPES), _maybe(GROUPS))
    others = [_maybe(GROUPS), _maybe(DTYPES), _maybe(GROUPS), _maybe(GROUPS)]
    table = _table([calls, sections, *others, [(world,) for world in WORLDS], list(product(GROUP_SIZES, repeat=2))])
    return _named(table) | {"size_of": table[:, len(_COLUMNS) :]}


@lru_cache(maxsize=1)
def pairs() -> Columns:
    """Return every pair of inputs of a smaller domain, for claims about two inputs."""
    calls = [(0, 0, 0), (1, 2, 0)]
    sections = [(0,) * 9, *_flat([(1,)], _maybe((0, 2)), _maybe((2,)), [(0, 0)], _maybe((0,)))]
    single = _table([calls, sections, _maybe((0,)), [(0, 0)], _maybe((0,)), [(0, 0)], [(2,)]])
    picks = np.indices((len(single), len(single))).reshape(2, -1)
    sizes = np.full((len(picks[0]), 2), 2, dtype=np.int16)
    return _named(single[picks[0]]) | _named(single[picks[1]], "_other") | {"size_of": sizes}


# --- deciding ----------------------------------------------------------------------------------------


def why_not(claim: Claim) -> str:
    """Return why brute force can't decide a claim; empty where it can."""
    if claim.no_brute_force:
        return claim.no_brute_force
    return "" if _columns_of(claim) else "the claim is about no input: its terms are constants"


def decide_all(claims: Iterable[Claim]) -> CheckResult:
    """Decide the claims that `why_not` allows over the small domain, up to the first that is not proved.

    `checked` is the number of inputs that decide: the most that satisfy the premises of one claim. `skipped` has the
    label and the reason of each claim that is not decided here.
    """
    known: dict[str, dict[int, Any]] = {"one": {}, "two": {}}
    kept: list[z3.ExprRef] = []  # Z3 reuses the id of a term that was freed
    inputs, decided = 0, 0
    skipped: list[tuple[str, str]] = []
    for claim in claims:
        kept += [claim.premises, claim.conclusion]
        if reason := why_not(claim):
            skipped.append((claim.label, reason))
            continue
        about = _columns_of(claim)
        columns = pairs() if about == "two" else domain()
        given = np.broadcast_to(evaluate(claim.premises, columns, known[about]), len(columns["size_of"]))
        then = np.broadcast_to(evaluate(claim.conclusion, columns, known[about]), len(columns["size_of"]))
        decided += 1
        inputs = max(inputs, int(np.count_nonzero(given)))
        verdict, detail = _decided(claim, columns, given, then)
        if verdict is not Verdict.PROVED:
            return CheckResult(verdict, inputs, "inputs", f"{claim.label}: {detail}", tuple(skipped))
    return CheckResult(Verdict.PROVED if decided else Verdict.UNKNOWN, inputs, "inputs", skipped=tuple(skipped))


def _decided(claim: Claim, columns: Columns, given: Any, then: Any) -> tuple[Verdict, str]:
    if claim.possible:
        return (Verdict.PROVED, "") if np.any(given & then) else (Verdict.REFUTED, "no input satisfies it")
    if not np.any(given):
        return Verdict.VACUOUS, "no input satisfies the premises"
    wrong = np.flatnonzero(given & ~then)
    return (Verdict.REFUTED, f"false for {_describe(columns, wrong[0])}") if len(wrong) else (Verdict.PROVED, "")


def _columns_of(claim: Claim) -> str:
    """Return which columns decide a claim: those of "one" input or of "two"; empty for a claim of constants."""
    seen: set[int] = set()
    waiting = [claim.premises, claim.conclusion]
    about = ""
    while waiting:
        term = waiting.pop()
        if term.get_id() in seen:
            continue
        seen.add(term.get_id())
        if z3.is_const(term) and term.decl().kind() == z3.Z3_OP_UNINTERPRETED:
            if term.decl().name().endswith("_other"):
                return "two"
            about = "one"
        waiting += term.children()
    return about


def _describe(columns: Columns, row: int) -> str:
    shown = {name: column[row].tolist() for name, column in columns.items()}
    return ", ".join(f"{name} = {value}" for name, value in shown.items() if value not in (False,))
