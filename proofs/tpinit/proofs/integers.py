"""Proofs about shipped functions of integers: every path, every integer, no bound.

The functions run on symbolic integers (`symbolic`). A function that maps over `range(n)` is run with a
range that hands out one arbitrary index, so that what holds of it holds of all: the result is the
image of the whole range. What the paths give is then decided as lemmas by both solvers, since products
and quotients of unknowns are where a single solver could err.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import z3
from tpinit.proofs.claims import Result, Theorem, Verdict, register
from tpinit.proofs.solvers import SOLVERS, Answer
from tpinit.proofs.symbolic import SymbolicBool, SymbolicInt, Unsupported, explore

__all__ = ["Lemma", "arbitrary_range", "edited_module", "lemma_theorem", "summarised", "term"]


@dataclass(frozen=True, slots=True)
class Lemma:
    """One lemma about what shipped code computes: under `given`, `computes` returns a truth that holds.

    `computes` is run on every path; it calls the shipped functions on symbolic integers and returns a
    term that must follow from `given` and the path.
    """

    says: str
    given: z3.BoolRef
    computes: Callable[[], z3.BoolRef]


def term(value: object) -> z3.ExprRef:
    """Give the Z3 term of what shipped code returned: an integer or a truth, symbolic or not."""
    if isinstance(value, SymbolicInt | SymbolicBool):
        return value.term
    if isinstance(value, bool):
        return z3.BoolVal(value)
    if isinstance(value, int):
        return z3.IntVal(value)
    raise Unsupported(f"the code under proof returned {type(value).__name__}, not an integer")


def edited_module(module: types.ModuleType, old: str, new: str) -> types.ModuleType:
    """Load a shipped module with one piece of its source replaced.

    Raises ValueError unless the piece occurs exactly once: a control that changes nothing is no control.
    """
    source = inspect.getsource(module)
    if source.count(old) != 1:
        raise ValueError(f"{old!r} occurs {source.count(old)} times in the source of {module.__name__}")
    made = types.ModuleType(f"edited_{module.__name__.rpartition('.')[2]}")
    exec(compile(source.replace(old, new), made.__name__, "exec"), made.__dict__)
    return made


@contextmanager
def arbitrary_range(module: types.ModuleType, *indices: z3.ArithRef) -> Iterator[list[z3.ArithRef]]:
    """Let `range(n)` inside a shipped module hand out the next of `indices`, once.

    Yields the list of the n asked for, in order; the lemma must assume 0 <= index < n of each, and
    state that it was this n. Only `range(n)` from 0 in steps of 1 is followed.
    """
    waiting, asked = list(indices), []

    def one_of_all(*bounds: object) -> Iterator[SymbolicInt]:
        if len(bounds) != 1 or not waiting:
            raise Unsupported("the code under proof used range() in a way that is not followed")
        asked.append(term(bounds[0]))
        yield SymbolicInt(waiting.pop(0))

    missing = object()
    before = module.__dict__.get("range", missing)
    module.__dict__["range"] = one_of_all
    try:
        yield asked
    finally:
        if before is missing:
            del module.__dict__["range"]
        else:
            module.__dict__["range"] = before


@contextmanager
def summarised(module: types.ModuleType, name: str, begins: z3.FuncDeclRef, holds: z3.FuncDeclRef) -> Iterator[None]:
    """Let a shipped function that returns (offset, length) stand for what is proven of it elsewhere.

    Inside, calling it gives `begins` and `holds` of its arguments, of which the lemma may assume what
    another theorem proves of the function itself, and nothing else.
    """
    before = module.__dict__[name]

    def stand_in(*given: object) -> tuple[SymbolicInt, SymbolicInt]:
        terms = [term(each) for each in given]
        return SymbolicInt(begins(*terms)), SymbolicInt(holds(*terms))

    module.__dict__[name] = stand_in
    try:
        yield
    finally:
        module.__dict__[name] = before


def prove_lemmas(lemmas: Sequence[Lemma]) -> Result:
    """Run every lemma on every path and have both solvers decide what it computes there."""
    paths = 0
    for lemma in lemmas:
        before = paths
        try:
            for path in explore(lemma.computes, lemma.given):
                paths += 1
                if path.raised is not None or path.result is None:
                    return Result(Verdict.REFUTED, paths, "paths", f"{lemma.says}: raises {path.raised!r}")
                failure = _decide(lemma, (lemma.given, path.condition), path.result)
                if failure is not None:
                    return Result(failure[0], paths, "paths", failure[1])
        except Unsupported as reason:
            return Result(Verdict.UNKNOWN, paths, "paths", f"{lemma.says}: {reason}")
        if paths == before:
            return Result(Verdict.VACUOUS, paths, "paths", f"{lemma.says}: no path")
    return Result(Verdict.PROVED if paths else Verdict.VACUOUS, paths, "paths")


def _decide(lemma: Lemma, given: Sequence[z3.BoolRef], holds: z3.BoolRef) -> tuple[Verdict, str] | None:
    answers = {name: solve((*given, z3.Not(holds))) for name, solve in SOLVERS.items()}
    if all(answer is Answer.UNSAT for answer in answers.values()):
        premises = SOLVERS["z3"](given)
        return None if premises is Answer.SAT else (Verdict.VACUOUS, f"{lemma.says}: premises are {premises.value}")
    said = ", ".join(f"{name} says {answer.value}" for name, answer in answers.items())
    if len({*answers.values()} - {Answer.UNKNOWN}) > 1:
        return Verdict.DISAGREEMENT, f"{lemma.says}: {said}"
    if Answer.SAT in answers.values():
        return Verdict.REFUTED, f"{lemma.says}: falls for {_numbers((*given, z3.Not(holds)))}"
    return Verdict.UNKNOWN, f"{lemma.says}: {said}"


def _numbers(terms: Sequence[z3.BoolRef]) -> str:
    solver = z3.Solver()
    solver.set("timeout", 10_000)
    solver.add(*terms)
    if solver.check() != z3.sat:
        return "some integers"
    state = solver.model()
    numbers = sorted(f"{name} = {state[name]}" for name in state.decls() if name.arity() == 0)
    return ", ".join(numbers)


def lemma_theorem(
    clause: str, module: types.ModuleType, control: tuple[str, str], bound: str = ""
) -> Callable[[Callable[[Any], list[Lemma]]], Callable[[Any], list[Lemma]]]:
    """Register a function from a module to lemmas as a theorem about that shipped module.

    Its docstring is the statement; the control is the module with `control[1]` for `control[0]`.
    """

    def decorate(lemmas_of: Callable[[Any], list[Lemma]]) -> Callable[[Any], list[Lemma]]:
        register(
            Theorem(
                name=lemmas_of.__name__,
                statement=" ".join((lemmas_of.__doc__ or "").split()),
                clause=clause,
                control=f"the source with {control[1].strip()!r} for {control[0].strip()!r}",
                engine="paths, z3 and cvc5",
                prove=lambda: prove_lemmas(lemmas_of(module)),
                refute=lambda: prove_lemmas(lemmas_of(edited_module(module, *control))),
                bound=bound,
                sources=(module.__name__,),
            )
        )
        return lemmas_of

    return decorate
