"""The ledger: cores, witnesses and necessity are true and always the same, and differences are told."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
import z3
from tpinit.proofs import main, report
from tpinit.proofs.claims import THEOREMS, Claim, Mutant, right_model
from tpinit.proofs.ledger import comparing, entries, findings, necessity
from tpinit.proofs.ledger.cores import CoreError, core, needs
from tpinit.proofs.ledger.naming import conjuncts, name_of
from tpinit.proofs.ledger.page import page
from tpinit.proofs.ledger.witnesses import witness
from tpinit.proofs.running import judge
from tpinit.proofs.solvers import digest
from tpinit.reference import resolver
from tpinit.spec.model import SIZE_OF, Model, fresh_symbols
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Outcome, Section, Source, ViolationCode

ROOT = Path(__file__).parents[3]
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
                solver.add(z3.Not(claim.then), *chosen[:left_out], *chosen[left_out + 1 :])
                assert solver.check() == z3.sat
                checked += 1
    assert checked > 10


def test_what_is_found_is_what_a_reader_would_say():
    found = findings.explain(THEOREMS["no_size_is_ignored"])
    assert found.cores[("no SIZE_MISMATCH holds", "config.tp.tp_size is given")] == ["config.tp.tp_size"]
    assert found.cores[("no SIZE_MISMATCH holds", "call.tp_size and call.dtype are given")] == ["call.tp_size"]
    assert findings.explain(THEOREMS["rows_are_exhaustive"]).cores == {("A0 (TPG implies TPI)",): ["some row holds"]}
    assert findings.explain(THEOREMS["rows_are_exhaustive"]).control.startswith(
        "some row holds: falls for TPI, a section"
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
    with pytest.raises(ValueError, match="knows no QuantifierRef"):
        digest([Claim("", X > 1, z3.ForAll([Y], Y > X))])


def test_findings_do_not_depend_on_order_or_hash_seed():
    names = ["created_groups_tile_the_world", "the_named_source_holds_the_value", "rows_are_exhaustive"]
    program = (
        "import sys, tpinit.proofs.theorems\n"
        "from tpinit.proofs.claims import THEOREMS, right_model\n"
        "from tpinit.proofs.ledger.findings import explain\n"
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
    made = {drop.says: drop.apply(right_model()) for drop in necessity.drops()}
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
    row_7 = next(drop for drop in necessity.drops() if drop.says == "row 7")
    assert necessity.needed_by(row_7, names).theorem == "rows_are_exhaustive"
    harmless = Mutant("nothing", lambda model: model)
    assert necessity.needed_by(harmless, names) == necessity.Need("nothing")


def test_every_part_is_committed_as_needed():
    assert list(COMMITTED["necessity"]) == [drop.says for drop in necessity.drops()]
    assert all(THEOREMS[need["theorem"]] for need in COMMITTED["necessity"].values())


def test_a_part_that_nothing_needs_and_a_witness_that_is_missing_are_problems():
    whole = copy.deepcopy(COMMITTED)
    assert entries.missing([necessity.Need("row 7", "some_theorem", "falls")], whole) == []
    del whole["witnesses"]["rows"]["7"]
    del whole["witnesses"]["codes"]["SIZE_MISSING"]
    problems = entries.missing([necessity.Need("row 7")], whole)
    assert problems == [
        "without row 7 every theorem still holds: nothing needs it",
        "row 7 has no witness",
        "SIZE_MISSING has no witness",
    ]


# --- comparing ---------------------------------------------------------------------------------------


def _changed(change) -> list[str]:
    now = copy.deepcopy(COMMITTED)
    change(now)
    return comparing.differences(COMMITTED, now)


def test_the_committed_ledger_is_like_itself_and_times_never_count():
    assert _changed(lambda ledger: None) == []
    assert _changed(lambda ledger: ledger.update(times={"total": 9.9})) == []
    assert "times" not in COMMITTED
    assert comparing.differences({**COMMITTED, "times": 1}, {**COMMITTED, "times": 2}) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("theorems", "rows_are_exhaustive", "statement"), "Something else."),
        (("theorems", "rows_are_exhaustive", "verdict"), "refuted"),
        (("theorems", "rows_are_exhaustive", "formula"), "0" * 64),
        (("theorems", "rows_are_exhaustive", "oracles", "cvc5", "verdict"), "unknown"),
        (("theorems", "rows_are_exhaustive", "oracles", "z3", "checked"), 2),
        (("theorems", "rows_are_exhaustive", "control", "verdicts", "z3"), "proved"),
        (("theorems", "shipped_row_number", "sources", "tpinit.reference.resolver"), "0" * 64),
        (("bounds", "brute"), "none"),
        (("versions", "z3-solver"), "0.1"),
        (("summary", "proven"), True),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_a_change_is_told_by_its_path(path, value):
    def change(ledger):
        for key in path[:-1]:
            ledger = ledger[key]
        assert path[-1] in ledger
        ledger[path[-1]] = value

    (told,) = _changed(change)
    assert told.startswith(f"{'.'.join(path)}: is now {json.dumps(value)}; committed is ")
    assert ("another version" in told) == (path[0] == "versions")


def test_what_is_gone_and_what_is_new_are_told():
    (gone,) = _changed(lambda ledger: ledger["theorems"].pop("rows_are_exhaustive"))
    assert gone.startswith("theorems.rows_are_exhaustive: is gone; committed is {")
    (new,) = _changed(lambda ledger: ledger["theorems"].update(other={"verdict": "proved"}))
    assert new == 'theorems.other: is new: {"verdict": "proved"}'
    shorter = _changed(lambda ledger: ledger["theorems"]["no_size_is_ignored"]["needs"].pop())
    assert shorter == ["theorems.no_size_is_ignored.needs: has 3 entries now, 4 committed"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"theorems": 3}', "\ud800", "[" * 100_000])
def test_what_is_no_ledger_is_refused(content, tmp_path, capsys):
    path = tmp_path / "ledger.json"
    path.write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(comparing.UnreadableLedger):
        comparing.read(path)
    with pytest.raises(SystemExit) as ended:
        main.prove(["--check-ledger", str(path)])
    assert ended.value.code == 2
    assert "--write-ledger" in capsys.readouterr().err


# --- the report --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "rows_*", "--check-ledger", "docs/ledger.json"], "leave out --only"),
        (["--only", "rows_*", "--write-ledger", "ledger.json"], "leave out --only"),
        (["--check-ledger", "no/such/file"], "No such file"),
        (["--report", "README.md"], "give a directory"),
        (["--smt2", "README.md"], "give a directory"),
    ],
)
def test_a_usage_error_is_told_before_anything_is_proven(arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main.prove(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_command_reports_on_what_it_was_asked_to_prove(tmp_path, capsys):
    assert main.prove(["--only", "a0_is_necessary", "--jobs", "1", "--report", str(tmp_path)]) == 0
    assert "1 of 1 theorems proven" in capsys.readouterr().out
    written = json.loads((tmp_path / "ledger.json").read_text(encoding="utf-8"))
    assert list(written["times"]["theorems"]) == list(written["theorems"]) == ["a0_is_necessary"]
    assert written["theorems"]["a0_is_necessary"] == COMMITTED["theorems"]["a0_is_necessary"]
    assert written["theorems"]["a0_is_necessary"]["reached"]["an input without a row"].startswith(
        "no TPI, call.tp_group"
    )
    assert "a0_is_necessary" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_a_ledger_is_checked_against_the_one_that_is_kept(tmp_path, monkeypatch):
    # Of few theorems, so that it is quick: what they lack is told, and is the same in both.
    kept = tmp_path / "ledger.json"
    arguments = argparse.Namespace(only=None, report=None, check_ledger=kept, write_ledger=kept, jobs=1)
    records = [judge(THEOREMS[name], explained=True) for name in ("every_row_is_reachable", "rows_are_exhaustive")]
    lacking = report.report(arguments, None, records, 0.0)
    assert len([line for line in lacking if "has no witness" in line]) == 10
    committed = comparing.read(kept)
    assert "times" not in committed
    assert report.report(arguments, committed, records, 5.0) == lacking
    wrong = [records[0], replace(records[1], formula="0" * 64)]
    told = report.report(arguments, committed, wrong, 0.0)[len(lacking) :]
    assert told[0].startswith(f"{kept}: theorems.rows_are_exhaustive.formula: is now ")
    assert "--write-ledger" in told[-1]
    assert len(told) == 2


def test_the_hash_of_a_source_is_that_of_its_file():
    expected = hashlib.sha256(Path(resolver.__file__).read_bytes()).hexdigest()
    assert entries.source_hash("tpinit.reference.resolver") == expected
    with pytest.raises(LookupError):
        entries.source_hash("tpinit.reference.no_such_module")


def test_every_theorem_of_an_engine_has_its_source_in_the_ledger():
    for name, entry in COMMITTED["theorems"].items():
        by_claims = THEOREMS[name].claims is not None
        assert bool(entry["formula"]) == by_claims
        assert bool(entry["sources"]) == (not by_claims)
        assert bool(entry["premises"] or entry["reached"]) == by_claims


def test_a_proof_that_cannot_be_explained_is_no_pass(monkeypatch):
    monkeypatch.setattr("tpinit.proofs.running.explain", lambda _theorem: needs(Claim("x", X > 5, X > 6)))
    record = judge(THEOREMS["rows_are_exhaustive"], explained=True)
    assert record.verdict.value == "unknown"
    assert "does not follow from its premises" in record.detail


def test_the_page_has_a_column_of_times_only_where_there_are_times():
    assert "Seconds" not in page(COMMITTED)
    times = {"total": 61.4, "theorems": {name: {"total": 1.25} for name in COMMITTED["theorems"]}}
    timed = page({**COMMITTED, "times": times})
    assert timed.count(">1.25<") == len(COMMITTED["theorems"])
    assert "All of it took 61 seconds." in timed


def test_the_page_tells_what_is_not_proven():
    ledger = copy.deepcopy(COMMITTED)
    ledger["summary"]["proven"] -= 1
    ledger["theorems"]["rows_are_exhaustive"]["verdict"] = "refuted"
    ledger["necessity"]["row 7"] = {"theorem": "", "falls": ""}
    text = page(ledger)
    total, parts = len(ledger["theorems"]), len(ledger["necessity"])
    assert f"<strong>1 of {total} theorems are not proven.</strong>" in text
    assert f"<strong>1 of {parts} parts of the contract can be left out, and no theorem falls.</strong>" in text
    assert f"All {total} theorems are proven" in page(COMMITTED)
    assert '<span class="badge">refuted</span>' in text
    assert "<strong>no theorem falls</strong>" in text
