"""Theorems about translated source: both solvers decide what is claimed, and that nothing raises."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import z3
from tpinit.proofs.claims import CheckResult, Theorem, Verdict, register
from tpinit.proofs.edited_source import edited_module, source_of
from tpinit.proofs.exploring import Unsupported
from tpinit.proofs.solvers import SOLVERS, SolverAnswer
from tpinit.proofs.translation.translator import Translator

__all__ = ["ENGINE", "Translated", "for_every_remainder", "translated_theorem"]

ENGINE = "translation, z3 and cvc5"


@dataclass(frozen=True, slots=True)
class Translated:
    """What a theorem claims of a translated module: under the premises every conclusion holds, and nothing raises."""

    premises: z3.BoolRef
    conclusions: Sequence[tuple[str, z3.BoolRef]]


ClaimsOf = Callable[[Translator], Translated]


def check(module: types.ModuleType, claims_of: ClaimsOf, proves: Iterable[str]) -> CheckResult:
    """Translate a module and decide the claims. A function that `proves` names must have been called."""
    try:
        translator = Translator(source_of(module), module.__name__)
        claimed = claims_of(translator)
    except Unsupported as reason:
        return CheckResult(Verdict.UNKNOWN, 0, "claims", str(reason))
    left_out = sorted(set(proves) - translator.called)
    if left_out:
        return CheckResult(Verdict.UNKNOWN, 0, "claims", f"{', '.join(left_out)} was not translated")
    raising = z3.And(*_distinct(translator.obligations)) if translator.obligations else z3.BoolVal(True)
    if SOLVERS["z3"]((claimed.premises,)) is not SolverAnswer.SAT:
        return CheckResult(Verdict.VACUOUS, 0, "claims", "no input satisfies the premises")
    count = 0
    for label, conclusion in [*claimed.conclusions, ("nothing raises", raising)]:
        count += 1
        verdict, detail = _decide(claimed.premises, conclusion)
        if verdict is not Verdict.PROVED:
            return CheckResult(verdict, count, "claims", f"{label}: {detail}")
    return CheckResult(Verdict.PROVED, count, "claims")


def _distinct(terms: Sequence[z3.BoolRef]) -> list[z3.BoolRef]:
    return list({term.get_id(): term for term in terms}.values())


def _decide(premises: z3.BoolRef, conclusion: z3.BoolRef) -> tuple[Verdict, str]:
    answers = {name: solve((premises, z3.Not(conclusion))) for name, solve in SOLVERS.items()}
    summary = ", ".join(f"{name} says {answer.value}" for name, answer in answers.items())
    known = {*answers.values()} - {SolverAnswer.UNKNOWN}
    if known == {SolverAnswer.UNSAT} and len(answers) == list(answers.values()).count(SolverAnswer.UNSAT):
        return Verdict.PROVED, ""
    if known == {SolverAnswer.SAT}:
        return Verdict.REFUTED, f"it is false; {summary}"
    return (Verdict.DISAGREEMENT if len(known) > 1 else Verdict.UNKNOWN), summary


def translated_theorem(
    clause: str, module: types.ModuleType, control: tuple[str, str], proves: tuple[str, ...], name: str = ""
) -> Callable[[ClaimsOf], ClaimsOf]:
    """Register a function from a translated module to claims as a theorem; its docstring is the statement.

    `proves` names the functions of the module that the theorem is about. The control is the module with the text
    `control[0]` replaced by `control[1]`.
    """

    def decorate(claims_of: ClaimsOf) -> ClaimsOf:
        register(
            Theorem(
                name=name or str(getattr(claims_of, "__name__", "")),
                statement=" ".join((claims_of.__doc__ or "").split()),
                clause=clause,
                control=f"the source with {control[0].strip()!r} replaced by {control[1].strip()!r}",
                engine=ENGINE,
                prove=lambda: check(module, claims_of, proves),
                refute=lambda: check(edited_module(module, *control), claims_of, ()),
                sources=(module.__name__,),
                proves=tuple(f"{module.__name__}.{function}" for function in proves),
                on=lambda other: check(other, claims_of, proves),
            )
        )
        return claims_of

    return decorate


_REMAINDER = z3.Function("remainder", z3.IntSort(), z3.IntSort(), z3.IntSort())


def for_every_remainder(term: z3.BoolRef) -> z3.BoolRef:
    """Return a term with `%` by what is no number replaced by any function: if it holds, the term holds of `%` too.

    Products of unknowns, which `%` stands for, are hard for a solver, and two equal formulas do not need them.
    """
    known: dict[int, z3.ExprRef] = {}

    def replaced(part: z3.ExprRef) -> z3.ExprRef:
        if not z3.is_app(part) or part.num_args() == 0:
            return part
        if part.get_id() not in known:
            parts = [replaced(each) for each in part.children()]
            is_remainder = part.decl().kind() == z3.Z3_OP_MOD and not z3.is_int_value(parts[1])
            known[part.get_id()] = _REMAINDER(*parts) if is_remainder else part.decl()(*parts)
        return known[part.get_id()]

    return replaced(term)
