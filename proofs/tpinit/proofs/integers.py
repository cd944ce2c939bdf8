"""Proofs about shipped functions of integers: every path, every integer, no bound.

The functions run on symbolic integers (`symbolic`). A function that maps over `range(n)` runs with a replaced `range`
that yields one arbitrary index, so that a property of this index holds for all. Both solvers then decide the lemmas
about the results, because products and quotients of unknowns are hard enough for a single solver to be wrong.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import z3
from tpinit.proofs.claims import CheckResult, Theorem, Verdict, register
from tpinit.proofs.edited_source import edited_module, source_of
from tpinit.proofs.sealing import sealed
from tpinit.proofs.solvers import SOLVERS, SolverAnswer
from tpinit.proofs.symbolic import SymbolicBool, SymbolicInt, Unsupported, as_declared, explore

__all__ = ["Lemma", "Mapped", "arbitrary_range", "lemma_theorem", "replaced", "summarised", "term"]


@dataclass(frozen=True, slots=True)
class Lemma:
    """One lemma about the result of shipped code; `label` names it within its theorem.

    `computes` calls the shipped functions on symbolic integers and returns a Boolean term. It runs on every path, and
    its term must follow from `premises` and the condition of the path.
    """

    label: str
    premises: z3.BoolRef
    computes: Callable[[], z3.BoolRef]


def term(value: object) -> z3.ExprRef:
    """Return the Z3 term of an integer or a bool that shipped code returned. Raises Unsupported for another type."""
    if type(value) in (SymbolicInt, SymbolicBool):
        result: z3.ExprRef = value.term  # type: ignore[attr-defined] # it is one of the two
        return result
    if type(value) is bool:
        return z3.BoolVal(value)
    if type(value) is int:
        return z3.IntVal(value)
    raise Unsupported(f"the code under proof returned {type(value).__name__}, not an integer")


class Mapped:
    """What `tuple(f(i) for i in range(n))` returns while `range` yields one arbitrary index: the element at that index.

    It supports nothing: code that slices, reverses, repeats or joins it is refused.
    """

    def __init__(self, only: object) -> None:
        self.only = only


@contextmanager
def arbitrary_range(module: Any, *indices: z3.ArithRef) -> Iterator[list[z3.ArithRef]]:
    """Replace `range` inside a shipped module: each `range(n)` yields only the next of `indices`.

    `tuple` returns Mapped. The context yields the list of the arguments n, in order. The lemma must assume 0 <= index <
    n for each, and state which n it was. Only `range(n)` from 0 in steps of 1 is supported.
    """
    if _has_loop_over_range(module_of(module)):
        raise Unsupported(
            "the code under proof has a loop statement over range(), whose rounds may depend on each other"
        )
    waiting, lengths = list(indices), []

    def arbitrary_index(*bounds: object) -> Iterator[SymbolicInt]:
        if len(bounds) != 1 or not waiting:
            raise Unsupported("the code under proof used range() in a way that the proof does not support")
        lengths.append(term(bounds[0]))
        yield SymbolicInt(waiting.pop(0))

    def mapped(values: Iterable[object]) -> Mapped:
        found = list(values)
        if len(found) != 1:
            raise Unsupported("the code under proof did not map each index to one element")
        return Mapped(found[0])

    with replaced(module, range=arbitrary_index, tuple=mapped):
        yield lengths


def _has_loop_over_range(module: types.ModuleType) -> bool:
    loops = [node.iter for node in ast.walk(ast.parse(source_of(module))) if isinstance(node, ast.For)]
    return any(isinstance(part, ast.Name) and part.id == "range" for loop in loops for part in ast.walk(loop))


@contextmanager
def replaced(module: Any, **names: object) -> Iterator[None]:
    """Replace names inside a shipped module, builtins included."""
    inside = module_of(module).__dict__
    before = {name: inside[name] for name in names if name in inside}
    inside.update(names)
    try:
        yield
    finally:
        for name in names:
            del inside[name]
        inside.update(before)


@contextmanager
def summarised(module: Any, name: str, begins: z3.FuncDeclRef, holds: z3.FuncDeclRef) -> Iterator[None]:
    """Replace a shipped function that returns (offset, length) by two uninterpreted functions.

    Inside the context, a call returns `begins` and `holds` of its arguments. The lemma may assume about them what
    another theorem proves of the replaced function, and nothing else.
    """

    def replacement(*arguments: object) -> tuple[SymbolicInt, SymbolicInt]:
        terms = [term(argument) for argument in arguments]
        return SymbolicInt(begins(*terms)), SymbolicInt(holds(*terms))

    with replaced(module, **{name: replacement}):
        yield


class Asked:
    """A module that notes which of its functions a proof called."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module, self.names = module, set[str]()

    def __getattr__(self, name: str) -> object:
        self.names.add(name)
        return as_declared(getattr(self.module, name))


def module_of(module: Any) -> types.ModuleType:
    """Return the module itself."""
    itself: types.ModuleType = module.module if isinstance(module, Asked) else module
    return itself


def prove_lemmas(lemmas: Sequence[Lemma]) -> CheckResult:
    """Run every lemma on every path and let both solvers decide the term that it computes there."""
    paths = 0
    for lemma in lemmas:
        before = paths
        try:
            for path in explore(lemma.computes, lemma.premises):
                paths += 1
                if path.raised is not None or path.result is None:
                    return CheckResult(Verdict.REFUTED, paths, "paths", f"{lemma.label}: raises {path.raised!r}")
                failure = _decide(lemma, (lemma.premises, path.condition), path.result)
                if failure is not None:
                    return CheckResult(failure[0], paths, "paths", failure[1])
        except Unsupported as reason:
            return CheckResult(Verdict.UNKNOWN, paths, "paths", f"{lemma.label}: {reason}")
        if paths == before:
            return CheckResult(Verdict.VACUOUS, paths, "paths", f"{lemma.label}: no path")
    return CheckResult(Verdict.PROVED if paths else Verdict.VACUOUS, paths, "paths")


def _decide(lemma: Lemma, given: Sequence[z3.BoolRef], holds: z3.BoolRef) -> tuple[Verdict, str] | None:
    answers = {name: solve((*given, z3.Not(holds))) for name, solve in SOLVERS.items()}
    if all(answer is SolverAnswer.UNSAT for answer in answers.values()):
        premises = SOLVERS["z3"](given)
        return (
            None if premises is SolverAnswer.SAT else (Verdict.VACUOUS, f"{lemma.label}: premises are {premises.value}")
        )
    summary = ", ".join(f"{name} says {answer.value}" for name, answer in answers.items())
    if len({*answers.values()} - {SolverAnswer.UNKNOWN}) > 1:
        return Verdict.DISAGREEMENT, f"{lemma.label}: {summary}"
    if SolverAnswer.SAT in answers.values():
        return Verdict.REFUTED, f"{lemma.label}: false for {_numbers((*given, z3.Not(holds)))}"
    return Verdict.UNKNOWN, f"{lemma.label}: {summary}"


def _numbers(terms: Sequence[z3.BoolRef]) -> str:
    solver = z3.Solver()
    solver.set("timeout", 10_000)
    solver.add(*terms)
    if solver.check() != z3.sat:
        return "some integers"
    state = solver.model()
    numbers = sorted(f"{name} = {state[name]}" for name in state.decls() if name.arity() == 0)
    return ", ".join(numbers)


def _prove_sealed(
    lemmas_of: Callable[[Any], list[Lemma]], module: types.ModuleType, proves: tuple[str, ...]
) -> CheckResult:
    asked = Asked(module)
    try:
        with sealed(module):
            result = prove_lemmas(lemmas_of(asked))
    except Unsupported as reason:
        return CheckResult(Verdict.UNKNOWN, 0, "paths", str(reason))
    left_out = sorted(set(proves) - asked.names)
    if left_out and result.verdict is Verdict.PROVED:
        return CheckResult(Verdict.UNKNOWN, 0, "paths", f"{', '.join(left_out)} was not run")
    return result


def lemma_theorem(
    clause: str, module: types.ModuleType, control: tuple[str, str], proves: tuple[str, ...] = (), bound: str = ""
) -> Callable[[Callable[[Any], list[Lemma]]], Callable[[Any], list[Lemma]]]:
    """Register a function from a module to lemmas as a theorem about that shipped module.

    Its docstring is the statement. `proves` names the functions that the theorem is about. The control is the module
    with the text `control[0]` replaced by `control[1]`.
    """

    def decorate(lemmas_of: Callable[[Any], list[Lemma]]) -> Callable[[Any], list[Lemma]]:
        register(
            Theorem(
                name=lemmas_of.__name__,
                statement=" ".join((lemmas_of.__doc__ or "").split()),
                clause=clause,
                control=f"the source with {control[0].strip()!r} replaced by {control[1].strip()!r}",
                engine="paths, z3 and cvc5",
                prove=lambda: _prove_sealed(lemmas_of, module, proves),
                refute=lambda: _prove_sealed(lemmas_of, edited_module(module, *control), ()),
                bound=bound,
                sources=(module.__name__,),
                proves=tuple(f"{module.__name__}.{name}" for name in proves),
                on=lambda other: _prove_sealed(lemmas_of, other, proves),
            )
        )
        return lemmas_of

    return decorate
