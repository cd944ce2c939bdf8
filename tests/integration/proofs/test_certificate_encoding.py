"""The formulas of certificates say of all facts what the contract says."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from pysat.solvers import Cadical153
from tpinit.proofs.certificates.encoding import FORMULAS, Contract
from tpinit.proofs.certificates.refuting import VacuousPremises, premises_witness, refute
from tpinit.proofs.claims import Verdict
from tpinit.proofs.theorems import certified
from tpinit.spec.prose import RULES
from tpinit.spec.table import ROWS
from tpinit.spec.vocabulary import Fact, FieldsFrom, GroupFrom, Outcome, ViolationCode

EXHAUSTIVE, DISJOINT, TABLE_IS_PROSE = FORMULAS
A0 = [facts for facts in product((False, True), repeat=4) if facts[0] or not facts[1]]


def models(formula, facts):
    """Give all models of the premises for these facts: the names of the variables that are true."""
    found = []
    with Cadical153(bootstrap_with=[list(clause) for clause in formula.premises]) as solver:
        assumed = [place if truth else -place for place, truth in enumerate(facts, 1)]
        while solver.solve(assumptions=assumed):
            model = solver.get_model()
            found.append({formula.variables[literal - 1] for literal in model if literal > 0})
            solver.add_clause([-literal for literal in model])
    return found


COLUMNS = {"outcome": Outcome, "code": ViolationCode, "fields_from": FieldsFrom, "group_from": GroupFrom}


@pytest.mark.parametrize("facts", A0)
def test_the_formula_says_of_all_facts_what_the_row_says_and_nothing_else(facts):
    (row,) = (row for row in ROWS if (row.tpi, row.tpg, row.cfg, row.mpu) == facts)
    (true,) = models(FORMULAS[TABLE_IS_PROSE](Contract()), facts)
    expected = {f"row {row.number} holds"}
    for column in COLUMNS:
        value = getattr(row, column)
        if value is not None:
            expected |= {f"table: {column} is {value.name}", f"prose: {column} is {value.name}"}
    assert {name for name in true if name.startswith(("row", "table", "prose", "they differ"))} == expected
    firing = {
        f"rule {i} ({r.clause}) fires"
        for i, r in enumerate(RULES, 1)
        if all(facts[list(Fact).index(f)] is t for f, t in r.when.items())
    }
    assert {name for name in true if name.endswith("fires")} == firing


@pytest.mark.parametrize("name", FORMULAS)
def test_premises_hold_for_just_the_facts_that_a0_allows(name):
    formula = FORMULAS[name](Contract())
    witness = premises_witness(formula)
    assert sorted(map(abs, witness)) == list(range(1, len(formula.variables) + 1))
    assert all(set(clause) & set(witness) for clause in formula.premises)
    for facts in product((False, True), repeat=4):
        assert len(models(formula, facts)) == (facts in A0)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (((1,), (-1,)), "exclude TPI is false, TPG is false, CFG is false, MPU is false"),
        (((-1, -2, -3, -4),), "exclude TPI is true, TPG is true, CFG is true, MPU is true"),
        (((2, 3),), "exclude TPI is false, TPG is false, CFG is false, MPU is false"),
    ],
)
def test_a_formula_whose_premises_exclude_facts_is_vacuous(monkeypatch, name, extra, says):
    right = FORMULAS[name](Contract())
    vacuous = replace(right, premises=right.premises + extra)
    with pytest.raises(VacuousPremises, match=says):
        refute(vacuous)
    monkeypatch.setattr(certified, "FORMULAS", {name: lambda _contract: vacuous})
    assert certified.decide(name, Contract()).verdict is Verdict.VACUOUS


def test_premises_without_a0_are_not_what_they_should_be():
    right = FORMULAS[EXHAUSTIVE](Contract())
    assert right.premises[0] == (-2, 1)
    with pytest.raises(VacuousPremises, match="allow TPI is false, TPG is true"):
        premises_witness(replace(right, premises=right.premises[1:]))
