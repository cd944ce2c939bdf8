"""Theorems about the rules of the step proof: what a rule claims follows from what it assumes, for all sizes and
values.

A tensor is a function of its index, an uninterpreted function or one element of it; sizes and indices are unbounded
integers, elements are reals. A sum over elements, ranks or tokens is a fold: it is given by its start and its step, and
a statement about it is proven for the start and for one step (`base`, `step`), which is induction. No query has a
quantifier: a premise that holds for all indices is stated for those that the proof needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import z3
from tpinit.proofs.claims import CheckResult, Claim, Theorem, Verdict, register
from tpinit.proofs.solvers import SOLVERS, decide_all

__all__ = ["Lemmas", "base", "claim", "rule_theorem", "step", "when"]

Lemmas = Callable[[bool], Iterable[Claim]]
"""The claims of a theorem; with False, those of its control, of which at least one must be false."""


def claim(label: str, premises: Iterable[z3.BoolRef], conclusion: z3.BoolRef) -> Claim:
    """Return the claim that all premises together imply the conclusion."""
    return Claim(label, z3.And(z3.BoolVal(True), *premises), conclusion)


base = partial(claim, "base")
step = partial(claim, "step")


def when(condition: z3.BoolRef, value: z3.ArithRef) -> z3.ArithRef:
    """Return the value where the condition holds, else 0: what a rank that lacks an element adds to a sum."""
    return z3.If(condition, value, z3.RealVal(0))


def _decided(lemmas: Lemmas, right: bool) -> CheckResult:
    """Let both solvers decide the claims; a verdict is that of both."""
    claims = list(lemmas(right))
    results = {name: decide_all(claims, solve) for name, solve in SOLVERS.items()}
    verdicts = {result.verdict for result in results.values()}
    if len(verdicts) == 1:
        return results["z3"]
    told = ", ".join(f"{name} says {result.verdict.value} {result.detail}" for name, result in results.items())
    decided = verdicts - {Verdict.UNKNOWN}
    return CheckResult(Verdict.DISAGREEMENT if len(decided) > 1 else Verdict.UNKNOWN, len(claims), detail=told)


def rule_theorem(
    rules: tuple[str, ...], control: str, sources: tuple[str, ...], bound: str = ""
) -> Callable[[Lemmas], Lemmas]:
    """Register a function from True (the theorem) or False (its control) to claims; its docstring is the statement.

    `rules` names the rules of `tpinit.step` that the theorem is about, as `step.rules` lists them. `sources` are the
    modules of `tpinit.step` that hold them.
    """

    def decorate(lemmas: Lemmas) -> Lemmas:
        register(
            Theorem(
                name=f"step_{getattr(lemmas, '__name__', '')}",
                statement=" ".join((lemmas.__doc__ or "").split()),
                clause="6.11",
                control=control,
                engine="z3 and cvc5",
                prove=lambda: _decided(lemmas, True),
                refute=lambda: _decided(lemmas, False),
                bound=bound,
                sources=tuple(f"tpinit.step.{name}" for name in sources),
                rules=rules,
            )
        )
        return lemmas

    return decorate
