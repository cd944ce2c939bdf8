"""An input that satisfies given terms, the same one always: as little as possible is given, values are small.

Every symbol is pinned in turn, in the order of the vocabulary, to the first value that still leaves an
input: not given before given, 1 before 2, the same group before another. So the input does not depend
on which one a solver happens to find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import chain

import z3
from tpinit.proofs.words import tell
from tpinit.spec.model import SIZE_OF, GroupSort, fresh_symbols

__all__ = ["witness"]

_STEPS = 50_000_000  # of the solver, so that a busy machine changes nothing
_SMALL = (*range(1, 9), 0, *range(-1, -9, -1))


def witness(*terms: z3.BoolRef) -> str | None:
    """Tell the first input that satisfies all terms, in the contract's words. None where there is none.

    Where the terms speak of two inputs, both are told. Numbers beside the inputs are told by their names.
    """
    solver = z3.Solver()
    solver.set("rlimit", _STEPS)
    solver.add(*terms)
    if solver.check() != z3.sat:
        return None
    free = _constants(terms)
    inputs = [fresh_symbols()] if not free or any(not _is_other(one) for one in free) else []
    if any(_is_other(one) for one in free):
        inputs.append(fresh_symbols("_other"))
    of_inputs = list(chain.from_iterable(astuple(symbols) for symbols in inputs))
    mine = {one.get_id() for one in of_inputs}
    numbers = sorted((one for one in free if one.get_id() not in mine), key=str)
    _pin(solver, [*of_inputs, *numbers], {one.get_id() for one in free})
    solver.check()
    state = solver.model()
    said = [_lettered(tell(state, symbols)) for symbols in inputs]
    # A claim about inputs built by hand has none of an input's own facts in it.
    if not any(one.sort() == z3.BoolSort() for one in free) and free:
        said = [", ".join(_values(state, sorted(free, key=str)))]
        numbers = []
    told = said if len(said) == 1 else [f"one input: {said[0]}", f"another: {said[1]}"]
    return "; ".join([*told, *_values(state, numbers)])


def _is_other(term: z3.ExprRef) -> bool:
    return str(term).endswith("_other")


def _values(state: z3.ModelRef, terms: Sequence[z3.ExprRef]) -> Iterator[str]:
    for term in terms:
        if term.sort() == GroupSort:
            yield f"a group {term} of size {state.eval(SIZE_OF(term), model_completion=True)}"
        else:
            yield f"{term} = {state.eval(term, model_completion=True)}"


def _constants(terms: Sequence[z3.ExprRef]) -> list[z3.ExprRef]:
    seen: set[int] = set()
    found: list[z3.ExprRef] = []
    waiting = list(terms)
    while waiting:
        term = waiting.pop()
        if term.get_id() in seen:
            continue
        seen.add(term.get_id())
        if z3.is_const(term) and term.decl().kind() == z3.Z3_OP_UNINTERPRETED:
            found.append(term)
        waiting += term.children()
    return found


def _pin(solver: z3.Solver, constants: Sequence[z3.ExprRef], occurring: set[int]) -> None:
    """Pin each constant to the first of its values that the solver still allows. Bools first, groups last."""
    ranks = {z3.BoolSort(): 0, z3.IntSort(): 1, GroupSort: 3}
    groups: list[z3.ExprRef] = []
    for constant in sorted(constants, key=lambda one: ranks.get(one.sort(), 2)):
        if constant.sort() == GroupSort:
            _choose(solver, constant, groups)
            groups.append(constant)
            _choose_number(solver, SIZE_OF(constant))
        elif constant.sort() == z3.IntSort():
            _choose_number(solver, constant) if constant.get_id() in occurring else solver.add(constant == 1)
        elif constant.sort() == z3.BoolSort():
            _choose(solver, constant, (z3.BoolVal(False), z3.BoolVal(True)))
        elif isinstance(constant.sort(), z3.DatatypeSortRef):
            sort = constant.sort()
            _choose(solver, constant, [sort.constructor(place)() for place in range(sort.num_constructors())])


def _choose(solver: z3.Solver, term: z3.ExprRef, values: Sequence[z3.ExprRef]) -> bool:
    for value in values:
        if solver.check(term == value) == z3.sat:
            solver.add(term == value)
            return True
    return False


def _choose_number(solver: z3.Solver, term: z3.ArithRef) -> None:
    if _choose(solver, term, [z3.IntVal(number) for number in _SMALL]):
        return
    # Not a small one: the smallest above, found by halving what is left between 8 and one that will do.
    solver.check()
    found = solver.model().eval(term, model_completion=True).as_long()
    low, high = (_SMALL[-1], found) if found < 0 else (max(_SMALL), found)
    while abs(high - low) > 1:
        middle = (low + high) // 2
        inside = z3.And(term > low, term <= middle) if found > 0 else z3.And(term < low, term >= middle)
        low, high = (low, middle) if solver.check(inside) == z3.sat else (middle, high)
    solver.add(term == high)


def _lettered(said: str) -> str:
    """Name the groups A, B, ... in the order in which they are told, whatever the solver calls them."""
    letters: dict[str, str] = {}
    return re.sub(r"Group (\d+)", lambda hit: "group " + letters.setdefault(hit[1], chr(65 + len(letters))), said)
