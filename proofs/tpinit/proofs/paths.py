"""Run a function of the resolver on every path and compare its result with a term of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import z3
from tpinit.proofs.claims import CheckResult, Verdict
from tpinit.proofs.describe import describe
from tpinit.proofs.sealing import sealed
from tpinit.proofs.solvers import SOLVERS, SolverAnswer
from tpinit.proofs.symbolic import (
    OpaqueValue,
    Path,
    SymbolicBool,
    SymbolicDtype,
    SymbolicIdentity,
    SymbolicInt,
    Unsupported,
    as_declared,
    explore,
    lazy_inputs,
)
from tpinit.spec.evidence import Shown
from tpinit.spec.model import SIZE_OF, FieldTerm, Model, constant, fresh_symbols
from tpinit.spec.vocabulary import DType, Effective, Given, Group

__all__ = ["Agrees", "ResolverModule", "is_bool", "is_evidence", "is_field", "on_every_path", "same_value"]

Agrees = Callable[[Model, Any], z3.BoolRef]
ResolverModule = Any  # the module, shipped or edited


def on_every_path(
    module: ResolverModule, pick: Callable[[ResolverModule], Callable[[Any], object]], agrees: Agrees
) -> CheckResult:
    """Run the function that `pick` takes from a module on every path and compare its result with the model's term.

    Z3 decides each path when it is found; cvc5 decides once that no path differs, and that the paths cover every input.
    """
    model = Model(fresh_symbols())
    taken: list[z3.BoolRef] = []
    differing: list[z3.BoolRef] = []
    try:
        with sealed(module):
            function = as_declared(pick(module))
            for path in explore(lambda: function(lazy_inputs(model.given_input)), model.well_typed):
                taken.append(path.condition)
                wrong = z3.BoolVal(True) if path.raised is not None else z3.Not(agrees(model, path.result))
                differing.append(z3.And(path.condition, wrong))
                failure = _difference(model, path, wrong)
                if failure is not None:
                    return CheckResult(failure[0], len(taken), "paths", failure[1])
    except Unsupported as reason:
        return CheckResult(Verdict.UNKNOWN, len(taken), "paths", str(reason))
    return _confirmed(model, taken, differing)


def _confirmed(model: Model, taken: Sequence[z3.BoolRef], differing: Sequence[z3.BoolRef]) -> CheckResult:
    """Let cvc5 decide what Z3 has decided path by path."""
    if not taken:
        return CheckResult(Verdict.VACUOUS, 0, "paths")
    for says, term in (("a path differs", z3.Or(*differing)), ("an input has no path", z3.Not(z3.Or(*taken)))):
        answer = SOLVERS["cvc5"]((model.well_typed, term))
        if answer is not SolverAnswer.UNSAT:
            verdict = Verdict.UNKNOWN if answer is SolverAnswer.UNKNOWN else Verdict.DISAGREEMENT
            return CheckResult(
                verdict, len(taken), "paths", f"Z3 proves the opposite of {says!r}; cvc5: {answer.value}"
            )
    return CheckResult(Verdict.PROVED, len(taken), "paths")


def _difference(model: Model, path: Path[object], wrong: z3.BoolRef) -> tuple[Verdict, str] | None:
    solver = z3.Solver()
    solver.add(model.well_typed, path.condition, wrong)
    answer = solver.check()
    if answer == z3.unsat:
        return None
    if answer == z3.unknown:
        return Verdict.UNKNOWN, "the solver did not decide a path"
    ended = f"raises {path.raised!r}" if path.raised is not None else f"returns {_shown(path.result, solver.model())}"
    return Verdict.REFUTED, f"{ended} for {describe(solver.model(), model.given_input)}"


def _shown(result: object, state: z3.ModelRef) -> str:
    if type(result) in (SymbolicBool, SymbolicInt, SymbolicDtype, SymbolicIdentity):
        return str(state.eval(result.term, model_completion=True))  # type: ignore[attr-defined] # it is one of these
    if type(result) is OpaqueValue:
        return result.name
    if type(result) is Effective or type(result) is Given:
        source = None if result.source is None else result.source.value
        return f"{_shown(result.value, state)} from {source}"
    if type(result) is Group:
        return f"{_shown(result.identity, state)} of size {_shown(result.size, state)}"
    if type(result) is tuple:
        return f"({', '.join(_shown(part, state) for part in result)})"
    return str(result)


def is_bool(result: object, term: z3.BoolRef) -> z3.BoolRef:
    """Return the term that says that a result has the truth value of `term`. Raises Unsupported for another type."""
    if type(result) is SymbolicBool:
        return result.term == term
    if type(result) is bool:
        return z3.BoolVal(result) == term
    raise Unsupported(f"a predicate that returns {type(result).__name__}")


def same_value(value: object, term: z3.ExprRef) -> z3.BoolRef:
    """Return the term that says that a value is `term`. A group must be whole: identity, size and handle."""
    if type(value) is Group:
        if term.sort() != SIZE_OF.domain(0):
            return z3.BoolVal(False)
        identity: object = value.identity  # a term stands where the number does
        if type(identity) is not SymbolicIdentity or type(value.handle) is not OpaqueValue:
            raise Unsupported("a group that is not one of the input")
        # The handle of an input's group is named after its term.
        return z3.And(
            identity.term == term,
            _number(value.size) == SIZE_OF(term),
            z3.BoolVal(value.handle.name == str(term)),
        )
    if type(value) in (int, SymbolicInt):
        return _number(value) == term if z3.is_int(term) else z3.BoolVal(False)
    if type(value) is SymbolicDtype:
        return value.term == term if term.sort() == constant(DType.FP32).sort() else z3.BoolVal(False)
    raise Unsupported(f"a value of type {type(value).__name__}")


def _number(value: object) -> z3.ArithRef:
    if type(value) is int:
        return z3.IntVal(value)
    if type(value) is SymbolicInt:
        return value.term
    raise Unsupported(f"a size of type {type(value).__name__}")


def is_field(result: object, term: FieldTerm, values: Sequence[tuple[z3.BoolRef, z3.ExprRef]] = ()) -> z3.BoolRef:
    """Return the term that says that an effective value and its source are the model's.

    `values` are the possible values, each with its condition, where the field's value is none of the input's terms.
    """
    if type(result) is not Effective:
        raise Unsupported(f"an effective value of type {type(result).__name__}")
    sources = [comes == z3.BoolVal(result.source is source) for source, comes in term.comes_from.items()]
    known = result.source is None or result.source in term.comes_from
    if result.value is None:
        return z3.And(z3.BoolVal(known), z3.Not(term.exists), *sources)
    cases = values or [(z3.BoolVal(True), term.value)]
    same = z3.And(*(z3.Implies(holds, same_value(result.value, value)) for holds, value in cases))
    return z3.And(z3.BoolVal(known), term.exists, same, *sources)


def is_evidence(result: object, expected: Sequence[Shown]) -> z3.BoolRef:
    """Return the term that says that a tuple of given values is the evidence: as many, in order, with their sources."""
    if type(result) is not tuple or not all(type(given) is Given for given in result):
        raise Unsupported("evidence that is no tuple of given values")
    number = [z3.If(shown.holds, 1, 0) for shown in expected]
    parts = [_sum(number) == len(result)]
    for index, shown in enumerate(expected):
        place = _sum(number[:index])
        for at, given in enumerate(result):
            same = given.source is shown.source and same_value(given.value, shown.value)
            parts.append(z3.Implies(z3.And(shown.holds, place == at), same))
    return z3.And(*parts)


def _sum(numbers: Sequence[z3.ArithRef]) -> z3.ArithRef:
    """Return the sum of any number of terms. z3.Sum of one term is no SMT-LIB that cvc5 takes."""
    return sum(numbers, z3.IntVal(0))
