"""A deterministic input that satisfies given terms, with few fields given and small values.

Every symbol is fixed in turn, in the order of the vocabulary, to the first value that leaves the terms
satisfiable: not given before given, 1 before 2, an earlier group before a new one. So the input does not
depend on the model that a solver happens to find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from itertools import chain

import z3
from tpinit.proofs.describe import describe
from tpinit.spec.model import SIZE_OF, GroupSort, fresh_symbols

__all__ = ["witness"]

_STEPS = 50_000_000  # Z3's resource limit counts steps, so the machine's load has no effect
_SMALL = (*range(1, 9), 0, *range(-1, -9, -1))


def witness(*terms: z3.BoolRef) -> str | None:
    """Return a description of the first input that satisfies all terms; None where there is none.

    Where the terms are about two inputs, both are described. Other integers are listed by name.
    """
    solver = z3.Solver()
    solver.set("rlimit", _STEPS)
    solver.add(*terms)
    if solver.check() != z3.sat:
        return None
    free = _constants(terms)
    inputs = [fresh_symbols()] if not free or any(not _is_other(symbol) for symbol in free) else []
    if any(_is_other(symbol) for symbol in free):
        inputs.append(fresh_symbols("_other"))
    of_inputs = list(chain.from_iterable(astuple(symbols) for symbols in inputs))
    input_ids = {symbol.get_id() for symbol in of_inputs}
    numbers = sorted((symbol for symbol in free if symbol.get_id() not in input_ids), key=str)
    _pin(solver, [*of_inputs, *numbers], {symbol.get_id() for symbol in free})
    solver.check()
    state = solver.model()
    texts = [_with_letters(describe(state, symbols)) for symbols in inputs]
    # A claim about hand-made inputs has no Boolean symbol of an input in its terms.
    if not any(symbol.sort() == z3.BoolSort() for symbol in free) and free:
        texts = [", ".join(_values(state, sorted(free, key=str)))]
        numbers = []
    described = texts if len(texts) == 1 else [f"one input: {texts[0]}", f"another: {texts[1]}"]
    return "; ".join([*described, *_values(state, numbers)])


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
    """Fix each constant to the first of its values that the solver allows. Bools come first, groups last."""
    order = {z3.BoolSort(): 0, z3.IntSort(): 1, GroupSort: 3}
    groups: list[z3.ExprRef] = []
    for constant in sorted(constants, key=lambda symbol: order.get(symbol.sort(), 2)):
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
    # No small value fits: bisect between the largest small value and a value that fits.
    solver.check()
    found = solver.model().eval(term, model_completion=True).as_long()
    low, high = (_SMALL[-1], found) if found < 0 else (max(_SMALL), found)
    while abs(high - low) > 1:
        middle = (low + high) // 2
        inside = z3.And(term > low, term <= middle) if found > 0 else z3.And(term < low, term >= middle)
        low, high = (low, middle) if solver.check(inside) == z3.sat else (middle, high)
    solver.add(term == high)


def _with_letters(text: str) -> str:
    """Rename the groups of a description to A, B, ... in order of appearance, whatever the solver calls them."""
    letters: dict[str, str] = {}
    return re.sub(r"Group (\d+)", lambda hit: "group " + letters.setdefault(hit[1], chr(65 + len(letters))), text)
