"""Judge a mutant of the contract: killed by a theorem, proven equivalent to the contract, or surviving."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
import z3
from tpinit.proofs.claims import THEOREMS, Theorem, Verdict, right_model
from tpinit.proofs.edited_source import shipped, source_of
from tpinit.proofs.mutation.result import MutantResult, MutantStatus
from tpinit.proofs.mutation.spec import SpecMutant
from tpinit.proofs.solvers import decide_all
from tpinit.proofs.translation.decisions import effective, inputs_of
from tpinit.proofs.translation.translator import Translator
from tpinit.proofs.translation.values import Record, same
from tpinit.spec.model import DTYPES, SIZES, FieldTerm, Model, OutcomeTerms, constant
from tpinit.spec.vocabulary import FieldsFrom, Outcome, Source, ViolationCode

__all__ = ["by_resolver", "by_theorems", "differences", "judge_spec", "first_difference"]

TIMEOUT_MS = 30_000

# The theorems that kill most mutants of each target; they run first, all others follow in order of registration.
_FIRST: Mapping[str, tuple[str, ...]] = {
    "table": ("table_and_prose_agree_on_the_outcome", "table_and_prose_agree_on_the_sources"),
    "prose": ("table_and_prose_agree_on_the_outcome", "table_and_prose_agree_on_the_sources", "section_four_is_p3"),
    "definitions": (
        "only_zero_disables_a_section",
        "every_violation_refuses",
        "a_violation_holds_for_its_own_reason",
        "section_four_is_p3",
    ),
    "consistent": (
        "what_does_not_start_names_no_source",
        "two_sets_of_violations_agree",
        "columns_say_where_values_come_from",
        "rows_reject_exactly_by_their_codes",
        "a_violation_holds_for_its_own_reason",
    ),
    "predicates": (
        "section_four_is_p3",
        "a_violation_holds_for_its_own_reason",
        "rows_reject_exactly_by_their_codes",
    ),
    "orders": (
        "config_is_canonical",
        "the_call_fills_only_what_is_missing",
        "the_configs_group_comes_before_the_meshs",
    ),
    "decisions": ("only_zero_disables_a_section", "rows_are_exhaustive", "a_violation_holds_for_its_own_reason"),
}


def _in_order(target: str, without: Collection[str]) -> Iterator[Theorem]:
    first = [THEOREMS[name] for name in _FIRST[target]]
    for theorem in [*first, *(other for other in THEOREMS.values() if other not in first)]:
        if theorem.claims is not None and theorem.name not in without:
            yield theorem


def by_theorems(mutant: SpecMutant, without: Collection[str] = ()) -> tuple[str, str]:
    """Return the name of the first theorem that is false for the mutant and its message; two empty strings for none."""
    for theorem in _in_order(mutant.target, without):
        assert theorem.claims is not None
        result = decide_all(theorem.claims(mutant.apply(right_model())))
        if result.verdict in (Verdict.REFUTED, Verdict.VACUOUS):
            return theorem.name, f"{result.verdict.value}: {result.detail}" if result.detail else result.verdict.value
    return "", ""


def judge_spec(mutant: SpecMutant, without: Collection[str] = ()) -> MutantResult:
    """Judge a mutant with every theorem, then by a proof of equivalence. A survivor's message names a difference.

    `without` are the names of theorems to leave out.
    """
    # Theorems depend on the prose only through its answers, so a mutant with the same answers can't be killed.
    if mutant.target == "prose" and not first_difference(mutant):
        return _equivalent(mutant)
    killer, how = by_theorems(mutant, without)
    if killer:
        return MutantResult(mutant.target, mutant.name, MutantStatus.KILLED, killer, how)
    killer = by_resolver(mutant) if mutant.target == "consistent" else ""
    if killer:
        return MutantResult(mutant.target, mutant.name, MutantStatus.KILLED, killer, "the shipped resolver differs")
    seen = first_difference(mutant)
    return MutantResult(mutant.target, mutant.name, MutantStatus.SURVIVED, "", seen) if seen else _equivalent(mutant)


def by_resolver(mutant: SpecMutant) -> str:
    """Return the theorem by which the shipped resolver differs from a wrong contract; an empty string for none.

    This is what remains where everything in the contract has the same error.
    """
    right, wrong = right_model(), mutant.apply(right_model())
    decision = Translator(source_of(shipped), shipped.__name__).call("resolve", inputs_of(right))
    assert isinstance(decision, Record)
    violations = decision.fields["violations"].items
    listed = z3.Or(*(guard for guard, _ in violations))
    parts = {
        "translated_row": decision.fields["row"] == wrong.row_number,
        "translated_outcome": decision.fields["outcome"] == wrong.outcome,
        "translated_tp_size": same(decision.fields["tp_size"], effective(wrong, listed, wrong.effective_size)),
        "translated_dtype": same(decision.fields["dtype"], effective(wrong, listed, wrong.effective_dtype)),
        "translated_tp_group": same(decision.fields["tp_group"], effective(wrong, listed, wrong.effective_group)),
    }
    for code, (guard, _) in zip(ViolationCode, violations, strict=True):
        parts[f"translated_{code.value.lower()}"] = guard == wrong.violation(code)
    for name, equal in parts.items():
        solver = z3.Solver()
        solver.set("timeout", TIMEOUT_MS)
        solver.add(right.well_typed, z3.Not(equal))
        if solver.check() == z3.sat:
            return name
    return ""


def _equivalent(mutant: SpecMutant) -> MutantResult:
    proof = "Z3 proves that it decides and merges every input as the contract does"
    return MutantResult(mutant.target, mutant.name, MutantStatus.EQUIVALENT, "z3", proof)


def first_difference(mutant: SpecMutant) -> str:
    """Return the first observable difference from the contract; empty where Z3 proves that there is none."""
    original = right_model()
    mutated = mutant.apply(right_model())
    words = mutant.target != "consistent"
    for name, term in differences(original, mutated, words=words):
        solver = z3.Solver()
        solver.set("timeout", TIMEOUT_MS)
        solver.add(term)
        if name != "well-typed inputs":
            solver.add(original.well_typed)
        answer = solver.check()
        if answer != z3.unsat:
            return f"differs in {name}" if answer == z3.sat else f"Z3 could not compare {name}"
    return ""


def differences(right: Model, wrong: Model, *, words: bool = True) -> Iterator[tuple[str, z3.BoolRef]]:
    """Yield the name of each observable part of a contract and the term that is true where the two differ in it.

    Without `words`, two words of a column that name the same sources for an input are no difference: where there is no
    section, "call" says what "config, then call" says.
    """
    yield "well-typed inputs", right.well_typed != wrong.well_typed
    yield "the outcome", right.outcome != wrong.outcome
    yield "whether it starts", right.starts != wrong.starts
    yield "whether the section is disabled", right.disabled != wrong.disabled
    yield "the row", right.row_number != wrong.row_number
    for code in ViolationCode:
        yield code.value, right.violation(code) != wrong.violation(code)
    for name in ("effective_size", "effective_dtype", "effective_group"):
        yield name, z3.And(z3.Not(right.error), _fields_differ(getattr(right, name), getattr(wrong, name)))
    for name, mine, theirs in (
        ("the table", right.by_table, wrong.by_table),
        ("the prose", right.by_prose, wrong.by_prose),
    ):
        said = mine.fields_from != theirs.fields_from if words else _sources_differ(right, mine, wrong, theirs)
        yield name, z3.Or(_verdicts_differ(mine, theirs), said)
    for one, other in zip(right.disagreements, wrong.disagreements, strict=True):
        yield f"P3's {one.code.value}", right.disagree(one) != wrong.disagree(other)


def _fields_differ(mine: FieldTerm, theirs: FieldTerm) -> z3.BoolRef:
    sources = {*mine.comes_from, *theirs.comes_from}
    never = z3.BoolVal(False)
    comes = [mine.comes_from.get(source, never) != theirs.comes_from.get(source, never) for source in sorted(sources)]
    return z3.Or(mine.exists != theirs.exists, z3.And(mine.exists, mine.value != theirs.value), *comes)


def _verdicts_differ(mine: OutcomeTerms, theirs: OutcomeTerms) -> z3.BoolRef:
    codes = z3.And(mine.outcome == constant(Outcome.ERROR), mine.code != theirs.code)
    return z3.Or(
        mine.outcome != theirs.outcome,
        codes,
        mine.group_from != theirs.group_from,
    )


def _sources_differ(right: Model, mine: OutcomeTerms, wrong: Model, theirs: OutcomeTerms) -> z3.BoolRef:
    def takes(m: Model, verdict: OutcomeTerms, source: Source) -> z3.BoolRef:
        return z3.Or(*(z3.And(verdict.fields_from == constant(w), m.column_takes(w, source)) for w in FieldsFrom))

    return z3.Or(*(takes(right, mine, one) != takes(wrong, theirs, one) for one in (*SIZES, *DTYPES, Source.UNSET)))
