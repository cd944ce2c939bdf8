"""The ledger's cores, witnesses and necessary premises are true, and the same on every run."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
import z3
from tpinit.proofs.claims import THEOREMS, Claim, Mutant, right_model
from tpinit.proofs.ledger import entries, evidence, necessity
from tpinit.proofs.ledger.cores import CoreError, core, needs
from tpinit.proofs.ledger.naming import conjuncts, name_of
from tpinit.proofs.ledger.witnesses import witness
from tpinit.proofs.solvers import digest
from tpinit.reference import resolver
from tpinit.spec.model import SIZE_OF, Model, fresh_symbols
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Outcome, Section, Source, ViolationCode

from support.paths import ROOT

COMMITTED = json.loads((ROOT / "docs/ledger.json").read_text(encoding="utf-8"))
X, Y = z3.Ints("x y")
MODEL = Model(fresh_symbols())


# --- naming ------------------------------------------------------------------------------------------


def test_what_every_success_assumes_is_named_part_by_part():
    names = [name_of(part) for part in conjuncts(z3.And(MODEL.well_typed, MODEL.starts))]
    assert names == [*MODEL.typing, *(f"no {code.value} holds" for code in ViolationCode), "the row starts AutoTP"]


@pytest.mark.parametrize(
    ("term", "words"),
    [
        (MODEL.given(Source.CONFIG_AUTOTP_SIZE), "config.autotp_size is given"),
        (z3.Not(MODEL.given(Source.PRECISION)), "precision is not given"),
        (MODEL.given(Source.CALL_TP_SIZE), "call.tp_size and call.dtype are given"),
        (z3.Not(MODEL.given_input.mpu), "no MPU"),
        (MODEL.row_holds(MODEL.rows[6]), "row 7 holds"),
        (MODEL.given_input.autotp == 0, "config.autotp_size is 0"),
        (MODEL.effective_group.comes_from[Source.CREATED], "the group is created"),
        (SIZE_OF(MODEL.given_input.mpu_group) >= X + 1, "the size of mpu.tp_group >= x + 1"),
        (z3.Distinct(X, Y, X + Y), "x, y, x + y all differ"),
        (z3.Or(X > 1, z3.And(Y > 1, X > Y)), "x > 1 or (y > 1 and x > y)"),
        (MODEL.given_input.world == fresh_symbols("_other").world, "world_size: the same in both inputs"),
        (z3.And(MODEL.cfg, replace(MODEL, given_input=fresh_symbols("_other")).cfg), "CFG in both inputs"),
        (
            (MODEL.given_input.autotp < 1) == (fresh_symbols("_other").autotp < 1),
            "config.autotp_size < 1: the same in both inputs",
        ),
        (
            (MODEL.given_input.autotp < 1) == (fresh_symbols("_other").alias < 1),
            "(config.autotp_size < 1) is (config.tp.tp_size of the other input < 1)",
        ),
    ],
    ids=str,
)
def test_terms_are_said_in_the_contracts_words(term, words):
    assert name_of(term) == words


def test_a_premise_is_taken_apart_and_each_part_taken_once():
    parts = conjuncts(z3.And(z3.And(X > 1, Y > 1), z3.BoolVal(True), X > 1, z3.Not(z3.Or(X > 9, Y > 9))))
    assert [str(part) for part in parts] == ["x > 1", "y > 1", "Not(x > 9)", "Not(y > 9)"]


# --- cores -------------------------------------------------------------------------------------------


def test_a_core_has_what_is_needed_and_nothing_else():
    claim = Claim("", z3.And(X > 5, Y > 5, X > 3, X < 9), X > 4)
    assert [str(part) for part in core(claim)] == ["x > 5"]
    assert needs(Claim("", z3.And(X > 5, Y > 5), X + Y > 11)) == ["x > 5", "y > 5"]
    assert needs(Claim("", X > 5, X + 1 > X)) == []


@pytest.mark.parametrize("claim", [Claim("", X > 5, X > 6), Claim("", X > 5, X > 6, possible=True)])
def test_what_does_not_follow_has_no_core(claim):
    with pytest.raises(CoreError):
        needs(claim)


def test_no_part_of_any_core_can_be_left_out():
    checked = 0
    for name in ("no_size_is_ignored", "size_is_at_least_one", "created_groups_tile_the_world"):
        for claim in THEOREMS[name].claims(right_model()):
            chosen = core(claim)
            for left_out in range(len(chosen)):
                solver = z3.Solver()
                solver.add(z3.Not(claim.conclusion), *chosen[:left_out], *chosen[left_out + 1 :])
                assert solver.check() == z3.sat
                checked += 1
    assert checked > 10


def test_what_is_found_is_what_a_reader_would_say():
    found = evidence.explain(THEOREMS["no_size_is_ignored"])
    assert found.cores[("no SIZE_MISMATCH holds", "config.tp.tp_size is given")] == ["config.tp.tp_size"]
    assert found.cores[("no SIZE_MISMATCH holds", "call.tp_size and call.dtype are given")] == ["call.tp_size"]
    assert evidence.explain(THEOREMS["rows_are_exhaustive"]).cores == {("A0 (TPG implies TPI)",): ["some row holds"]}
    assert evidence.explain(THEOREMS["rows_are_exhaustive"]).control.startswith(
        "some row holds: false for TPI, a section"
    )


# --- witnesses ---------------------------------------------------------------------------------------


def test_a_witness_gives_little_and_has_small_values():
    assert witness(MODEL.well_typed) == "no TPI, world_size = 1"
    assert witness(MODEL.well_typed, MODEL.given_input.world > 3) == "no TPI, world_size = 4"
    assert witness(MODEL.cfg, MODEL.given_input.autotp == -1).startswith("no TPI, a section")
    two = z3.And(MODEL.given_input.mpu, MODEL.given_input.mesh)
    apart = MODEL.given_input.mpu_group != MODEL.given_input.mesh_group
    assert "mpu.tp_group = group A of size 1, mesh.tp_group = group A of size 1" in witness(MODEL.well_typed, two)
    assert "mpu.tp_group = group A of size 1, mesh.tp_group = group B of size 1" in witness(
        MODEL.well_typed, two, apart
    )


@pytest.mark.parametrize(("least", "told"), [(9, 9), (10**6, 10**6), (2**64, 2**64)])
def test_a_large_number_is_the_smallest_that_will_do(least, told):
    assert witness(MODEL.well_typed, MODEL.given_input.world >= least) == f"no TPI, world_size = {told}"


def test_a_number_far_below_zero_is_the_one_nearest_to_it():
    assert witness(X < -100) == "x = -101"


def test_what_nothing_satisfies_has_no_witness():
    assert witness(X > 1, X < 1) is None


def test_two_inputs_are_told_apart():
    told = witness(MODEL.well_typed, MODEL.given_input.world < fresh_symbols("_other").world)
    assert told == "one input: no TPI, world_size = 1; another: no TPI, world_size = 2"


def _inputs(told: str) -> Inputs:
    """Read a witness back. Groups are known by their letters."""
    values = dict(part.split(" = ") for part in told.split(", ") if " = " in part)

    def group(path: str) -> Group | None:
        found = re.fullmatch(r"group ([A-Z]) of size (\d+)", values.get(path, ""))
        return Group(ord(found[1]), int(found[2])) if found else None

    def number(path: str) -> int | None:
        return int(values[path]) if path in values else None

    def dtype(path: str) -> DType | None:
        return DType[values[path]] if path in values else None

    call = section = mpu = None
    if not told.startswith("no TPI"):
        size, call_dtype = number("call.tp_size"), dtype("call.dtype")
        assert size is not None
        assert call_dtype is not None
        call = Call(size, call_dtype, group("call.tp_group"))
    if "a section" in told:
        section = Section(
            number("config.autotp_size"),
            number("config.tp.tp_size"),
            dtype("config.dtype"),
            group("config.tp.tp_group"),
        )
    mpu_group = group("mpu.tp_group")
    if mpu_group is not None:
        mpu = Mpu(mpu_group)
    world = number("world_size")
    assert world is not None
    return Inputs(world, call, section, dtype("precision"), mpu, group("mesh.tp_group"))


def test_the_shipped_resolver_agrees_about_every_committed_witness():
    witnesses = COMMITTED["witnesses"]
    assert list(witnesses["rows"]) == [str(row.number) for row in MODEL.rows]
    for row in MODEL.rows:
        decision = resolver.resolve(_inputs(witnesses["rows"][str(row.number)]))
        assert (decision.row, decision.outcome) == (row.number, row.outcome)
    assert list(witnesses["codes"]) == [code.value for code in ViolationCode]
    for code in ViolationCode:
        decision = resolver.resolve(_inputs(witnesses["codes"][code.value]))
        assert [violation.code for violation in decision.violations] == [code]
        assert decision.outcome is Outcome.ERROR


def test_the_hash_of_a_formula_is_that_of_what_is_proven():
    claim = Claim("", X > 1, Y > 0)
    assert digest([claim]) == digest([Claim("said otherwise", X > 1, Y > 0)])
    others = [
        Claim("", X > 2, Y > 0),
        Claim("", X >= 1, Y > 0),
        Claim("", Y > 1, X > 0),
        Claim("", X > 1, z3.Int("z") > 0),
        Claim("", X > 1, Y > 0, possible=True),
        Claim("", z3.And(X > 1, Y > 0), Y > 0),
        Claim("", z3.Bool("x"), Y > 0),
    ]
    hashes = {digest([one]) for one in [claim, *others]} | {digest([claim, others[0]]), digest([others[0], claim])}
    assert len(hashes) == len(others) + 3
    with pytest.raises(ValueError, match="does not support QuantifierRef"):
        digest([Claim("", X > 1, z3.ForAll([Y], Y > X))])


def test_findings_do_not_depend_on_order_or_hash_seed():
    names = ["created_groups_tile_the_world", "the_named_source_holds_the_value", "rows_are_exhaustive"]
    program = (
        "import sys, tpinit.proofs.theorems\n"
        "from tpinit.proofs.claims import THEOREMS, right_model\n"
        "from tpinit.proofs.ledger.evidence import explain\n"
        "from tpinit.proofs.solvers import digest\n"
        "found = {n: (explain(THEOREMS[n]), digest(THEOREMS[n].claims(right_model()))) for n in sys.argv[1:]}\n"
        "print(*(f'{name}: {found[name]}' for name in sorted(found)), sep='\\n')\n"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", program, *order],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for seed, order in (("1", names), ("2", names[::-1]))
    }
    assert len(said) == 1
    assert all(name in next(iter(said)) for name in names)


# --- necessity ---------------------------------------------------------------------------------------


def test_each_drop_drops_one_part():
    made = {drop.description: drop.apply(right_model()) for drop in necessity.drops()}
    assert len(made) == 1 + 12 + 11 + 10
    right = right_model()
    for name, model in made.items():
        changed = (
            len(model.typing) != len(right.typing),
            len(model.rows) != len(right.rows),
            len(model.rules) != len(right.rules),
            model.predicates is not right.predicates,
        )
        assert changed.count(True) == 1, name
    assert necessity.A0 not in made[necessity.A0].typing
    assert made[necessity.A0].a0.eq(right.a0)


def test_a_model_whose_a0_has_another_name_is_refused():
    class Renamed(Model):
        typing = {"another": z3.BoolVal(True)}  # noqa: RUF012 - stands in for a property

    with pytest.raises(ValueError, match="no premise of the model is named"):
        next(necessity.drops()).apply(Renamed(fresh_symbols()))


def test_the_first_theorem_to_fall_is_named_and_nothing_is_said_where_none_does():
    names = ["rows_are_disjoint", "rows_are_exhaustive"]
    row_7 = next(drop for drop in necessity.drops() if drop.description == "row 7")
    assert necessity.needed_by(row_7, names).theorem == "rows_are_exhaustive"
    harmless = Mutant("nothing", lambda model: model)
    assert necessity.needed_by(harmless, names) == necessity.NecessityResult("nothing")


def test_every_part_is_committed_as_needed():
    assert list(COMMITTED["necessity"]) == [drop.description for drop in necessity.drops()]
    assert all(THEOREMS[need["theorem"]] for need in COMMITTED["necessity"].values())


def test_a_part_that_nothing_needs_and_a_witness_that_is_missing_are_problems():
    whole = copy.deepcopy(COMMITTED)
    assert entries.missing([necessity.NecessityResult("row 7", "some_theorem", "falls")], whole) == []
    del whole["witnesses"]["rows"]["7"]
    del whole["witnesses"]["codes"]["SIZE_MISSING"]
    problems = entries.missing([necessity.NecessityResult("row 7")], whole)
    assert problems == [
        "without row 7 every theorem still holds: no theorem needs it",
        "row 7 has no witness",
        "SIZE_MISSING has no witness",
    ]
