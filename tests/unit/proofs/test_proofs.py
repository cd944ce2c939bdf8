"""The proving machinery itself: what must be rejected is rejected, by every part of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
import z3
from tpinit.proofs import brute, crosshair, main, running
from tpinit.proofs.claims import THEOREMS, Claim, Mutant, Result, Theorem, Verdict, register, right_model
from tpinit.proofs.running import Record, judge
from tpinit.proofs.shipping import edited
from tpinit.proofs.solvers import SOLVERS, Answer, decide, decide_all, smt2
from tpinit.proofs.symbolic import SymbolicInt, Unsupported, explore, lazy_inputs
from tpinit.proofs.words import tell
from tpinit.spec.concrete import assume
from tpinit.spec.model import Model, constant, fresh_symbols
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section, ViolationCode

REPO = Path(__file__).parents[3]
X = z3.Int("x")
PROVED, REFUTED = Result(Verdict.PROVED, 1), Result(Verdict.REFUTED, 1)


# --- deciding claims ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_a_true_claim_is_proved_and_a_false_one_refuted(solve):
    assert decide(Claim("", X > 2, X > 1), solve).verdict is Verdict.PROVED
    assert decide(Claim("", X > 1, X > 2), solve).verdict is Verdict.REFUTED


def test_what_is_printed_for_the_second_solver_is_the_question():
    assert SOLVERS["cvc5"]((X > 2, X < 4)) is Answer.SAT
    assert SOLVERS["cvc5"]((X > 2, X < 3)) is Answer.UNSAT
    assert smt2((X > 2,)).splitlines()[0] == "(set-logic ALL)"


def test_premises_that_nothing_satisfies_are_vacuous_not_proved():
    assert decide(Claim("", z3.And(X > 2, X < 1), X == 7)).verdict is Verdict.VACUOUS


def test_a_theorem_without_claims_is_vacuous():
    assert decide_all([]).verdict is Verdict.VACUOUS


def test_a_possibility_needs_a_witness():
    assert decide(Claim("", X > 1, X < 3, possible=True)).verdict is Verdict.PROVED
    assert decide(Claim("", X > 1, X < 2, possible=True)).verdict is Verdict.REFUTED


def test_what_the_solver_cannot_decide_is_unknown(monkeypatch):
    monkeypatch.setattr("tpinit.proofs.solvers.TIMEOUT_MS", 50)
    y, w = z3.Ints("y w")
    fermat = Claim("", z3.And(X > 0, y > 0, w > 0), X * X * X + y * y * y != w * w * w)
    for solve in SOLVERS.values():
        assert decide(fermat, solve).verdict is Verdict.UNKNOWN


def test_the_first_claim_that_falls_ends_the_theorem():
    result = decide_all([Claim("one", X > 1, X > 0), Claim("two", X > 1, X > 9), Claim("three", X > 1, X > 0)])
    assert (result.verdict, result.checked) == (Verdict.REFUTED, 2)
    assert result.detail.startswith("two")


def test_a_counterexample_speaks_the_contracts_words():
    model = Model(fresh_symbols())
    inputs = Inputs(6, Call(4, DType.BF16), Section(autotp_size=3), mpu=Mpu(Group(0, 4)))
    solver = z3.Solver()
    solver.add(assume(inputs, model.given_input))
    assert solver.check() == z3.sat
    words = tell(solver.model(), model.given_input)
    for said in (
        "TPI",
        "call.tp_size = 4",
        "call.dtype = BF16",
        "config.autotp_size = 3",
        "of size 4",
        "world_size = 6",
    ):
        assert said in words
    assert "mesh" not in words


# --- judging theorems --------------------------------------------------------------------------------


def _theorem(prove, refute) -> Theorem:
    return Theorem("name", "statement", "6.1", "control", engine="test", prove=prove, refute=refute)


@pytest.mark.parametrize("control", [Result(verdict) for verdict in Verdict if verdict is not Verdict.REFUTED])
def test_a_control_that_is_not_refuted_fails_the_theorem(control):
    assert judge(_theorem(lambda: PROVED, lambda: control)).verdict is Verdict.CONTROL_SURVIVED


def test_a_theorem_passes_only_with_proof_and_refuted_control():
    assert judge(_theorem(lambda: PROVED, lambda: REFUTED)).verdict is Verdict.PROVED
    assert judge(_theorem(lambda: REFUTED, lambda: REFUTED)).verdict is Verdict.REFUTED


def test_a_proof_that_breaks_is_unknown_with_its_reason():
    def breaks() -> Result:
        raise KeyError("lost")

    record = judge(_theorem(breaks, lambda: REFUTED))
    assert record.verdict is Verdict.UNKNOWN
    assert "KeyError" in record.detail


def test_oracles_that_differ_are_a_disagreement(monkeypatch):
    theorem = THEOREMS["rows_are_exhaustive"]
    monkeypatch.setitem(running.SOLVERS, "contrarian", lambda _terms: Answer.SAT)
    record = judge(theorem)
    assert record.verdict is Verdict.DISAGREEMENT
    assert "contrarian says refuted" in record.detail


def test_an_oracle_that_does_not_know_makes_the_theorem_unknown(monkeypatch):
    monkeypatch.setitem(running.SOLVERS, "shy", lambda _terms: Answer.UNKNOWN)
    assert judge(THEOREMS["rows_are_exhaustive"]).verdict is Verdict.UNKNOWN


def test_theorems_need_names_of_their_own_and_statements():
    taken = next(iter(THEOREMS.values()))
    with pytest.raises(ValueError, match="two theorems"):
        register(taken)
    with pytest.raises(ValueError, match="no English statement"):
        register(replace(taken, name="new", statement=""))


def test_every_clause_of_section_six_that_is_due_has_theorems():
    assert {theorem.clause for theorem in THEOREMS.values()} >= {f"6.{item}" for item in (1, 2, 3, 4, 5, 6, 7, 10)}


def test_every_violation_has_a_shipped_predicate_proven_by_both_engines():
    for code in ViolationCode:
        assert f"shipped_{code.value.lower()}" in THEOREMS
        assert f"crosshair_{code.value.lower()}" in THEOREMS


@pytest.mark.parametrize("name", [name for name, theorem in THEOREMS.items() if theorem.claims])
def test_every_theorem_of_the_model_holds_and_its_control_falls(name):
    claims, mutant = THEOREMS[name].claims, THEOREMS[name].mutant
    assert claims is not None
    assert mutant is not None
    assert decide_all(claims(right_model())) == Result(Verdict.PROVED, len(list(claims(right_model()))))
    assert decide_all(claims(mutant.apply(right_model()))).verdict is Verdict.REFUTED


def test_brute_force_proves_refutes_and_knows_its_bounds():
    safe = THEOREMS["size_is_at_least_one"]
    assert safe.claims is not None
    assert safe.mutant is not None
    result = brute.decide_all(safe.claims(right_model()))
    assert (result.verdict, result.checked) == (Verdict.PROVED, 1_318_032)
    fallen = brute.decide_all(safe.claims(safe.mutant.apply(right_model())))
    assert fallen.verdict is Verdict.REFUTED
    assert brute.decide_all([Claim("", X > 1, X > 0, beyond="sizes beyond the domain")]).verdict is Verdict.UNKNOWN
    with pytest.raises(ValueError, match="knows nothing of x"):
        brute.decide_all([Claim("", X > 1, X > 0)])


# --- symbolic execution ------------------------------------------------------------------------------


def _paths(function, assuming=None):
    return list(explore(function, z3.BoolVal(True) if assuming is None else assuming))


def test_every_path_is_taken_once():
    def clamp() -> str:
        x = SymbolicInt(X)
        if x < 0:
            return "below"
        return "above" if x > 9 else "within"

    assert sorted(path.result for path in _paths(clamp)) == ["above", "below", "within"]
    assert [path.result for path in _paths(clamp, X > 20)] == ["above"]


def test_one_magic_integer_is_a_path_of_its_own():
    paths = _paths(lambda: "magic" if SymbolicInt(X) == 7_919_000_003 else "plain")
    magic = next(path for path in paths if path.result == "magic")
    solver = z3.Solver()
    solver.add(magic.condition)
    assert solver.check() == z3.sat
    assert solver.model()[X].as_long() == 7_919_000_003


@pytest.mark.parametrize("divisor", [-3, -1, 1, 2, 7])
@pytest.mark.parametrize("dividend", [-8, -7, -1, 0, 1, 6, 7])
def test_division_means_what_it_means_in_python(dividend, divisor):
    y = z3.Int("y")
    (path,) = [
        path
        for path in _paths(lambda: divmod(SymbolicInt(X), SymbolicInt(y)), z3.And(dividend == X, y == divisor))
        if path.raised is None
    ]
    quotient, remainder = (
        z3.substitute(part.term, (X, z3.IntVal(dividend)), (y, z3.IntVal(divisor))) for part in path.result
    )
    assert (z3.simplify(quotient).as_long(), z3.simplify(remainder).as_long()) == divmod(dividend, divisor)


def test_dividing_by_zero_is_a_path_that_raises():
    raised = [type(path.raised) for path in _paths(lambda: 5 % SymbolicInt(X)) if path.raised]
    assert raised == [ZeroDivisionError]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda x: hash(x),
        lambda x: int(x),
        lambda x: range(x),
        lambda x: f"{x}",
        lambda x: x == "2",
        lambda x: x + 0.5,
        lambda x: hash(x == 1),
        lambda x: (x == 1) == (x == 2),
    ],
)
def test_what_the_explorer_does_not_follow_fails_the_proof(misuse):
    with pytest.raises(Unsupported):
        _paths(lambda: misuse(SymbolicInt(X)))


def test_an_input_cannot_be_changed_or_asked_for_what_the_contract_does_not_know():
    symbols = fresh_symbols()
    with pytest.raises(Unsupported, match="wrote"):
        _paths(lambda: setattr(lazy_inputs(symbols), "world_size", 3))
    with pytest.raises(Unsupported, match=r"read \.hostname"):
        _paths(lambda: lazy_inputs(symbols).hostname)


def test_endless_paths_are_not_a_proof(monkeypatch):
    monkeypatch.setattr("tpinit.proofs.symbolic.MAX_PATHS", 20)
    monkeypatch.setattr("tpinit.proofs.symbolic.MAX_DECISIONS", 50)

    def count(x: SymbolicInt) -> int:
        n = 0
        while x > n:
            n += 1
        return n

    with pytest.raises(Unsupported, match="more than 20 paths"):
        _paths(lambda: count(SymbolicInt(X)), X < 40)
    with pytest.raises(Unsupported, match="more than 50 decisions"):
        _paths(lambda: count(SymbolicInt(X)))


def test_an_edit_that_changes_nothing_is_no_control():
    with pytest.raises(ValueError, match="occurs 0 times"):
        edited("this text is nowhere", "x")


@pytest.mark.parametrize("name", [name for name in THEOREMS if name.startswith("shipped_")])
def test_every_edited_resolver_is_refuted(name):
    refute = THEOREMS[name].refute
    assert refute is not None
    assert refute().verdict is Verdict.REFUTED


# --- CrossHair ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("c.py:4: info: Confirmed over all paths.\n", Verdict.PROVED),
        ("c.py:4: info: Not confirmed.\n", Verdict.UNKNOWN),
        ("c.py:4: error: false when calling predicate(1)\n", Verdict.REFUTED),
        ("c.py:4: info: Confirmed over all paths.\nc.py:9: info: Not confirmed.\n", Verdict.UNKNOWN),
        ("", Verdict.UNKNOWN),
        ("Traceback (most recent call last):\n", Verdict.UNKNOWN),
    ],
)
def test_only_crosshairs_confirmation_is_a_proof(said, verdict):
    assert crosshair._read(said).verdict is verdict


def test_crosshair_confirms_the_shipped_predicate_and_refutes_a_magic_integer():
    code = ViolationCode.GROUP_AND_MPU
    assert crosshair.check_predicate(code).verdict is Verdict.PROVED
    assert crosshair.check_predicate(code, ("inputs.call.tp_group is not None and", "")).verdict is Verdict.REFUTED


def test_the_model_printed_as_python_means_the_same():
    symbols = fresh_symbols()
    model = Model(symbols)
    for code in ViolationCode:
        text = crosshair.as_python(model.violation(code))
        for inputs in (
            Inputs(6, Call(4, DType.BF16, Group(0, 4)), Section(4, None, DType.FP16), mpu=Mpu(Group(1, 2))),
            Inputs(6, None, Section(4, None, DType.FP32), DType.FP16, mesh=Group(3, 5)),
            Inputs(5, None, Section(0)),
            Inputs(5, None, Section(0, 2)),
            Inputs(4, Call(-1, DType.FP32)),
            Inputs(7, None, Section()),
        ):
            solver = z3.Solver()
            solver.add(assume(inputs, symbols))
            assert solver.check() == z3.sat
            state = solver.model()
            names: dict[str, object] = {"pick_dtype": lambda name: name}
            for name in (*symbols.__dataclass_fields__,):
                term = getattr(symbols, name)
                value = state.eval(term, model_completion=True)
                names[name] = z3.is_true(value) if z3.is_bool(value) else str(value)
                if z3.is_int_value(value):
                    names[name] = value.as_long()
                if term.sort().name() == "Group":
                    from tpinit.spec.model import SIZE_OF

                    names[f"{name}_size"] = state.eval(SIZE_OF(term), model_completion=True).as_long()
            expected = z3.is_true(state.eval(model.violation(code), model_completion=True))
            assert bool(eval(text, names)) == expected, (code, inputs)


def test_a_term_without_a_python_form_is_refused():
    with pytest.raises(ValueError, match="no Python form"):
        crosshair.as_python(z3.Exists([X], X == 1))


def test_constants_of_the_vocabulary_are_distinct():
    assert z3.simplify(constant(DType.BF16) == constant(DType.FP16)).eq(z3.BoolVal(False))


# --- the command, and contracts that are wrong -------------------------------------------------------


def test_the_command_lists_and_selects(capsys):
    assert main.prove(["--list"]) == 0
    listed = capsys.readouterr().out.split()
    assert listed[1::2] == [name for name in listed[1::2] if name in THEOREMS]
    assert len(listed) == 2 * len(THEOREMS)


@pytest.mark.parametrize("arguments", [["--only", "no_such"], ["--jobs", "0"], ["--jobs", "many"], ["--frobnicate"]])
def test_a_usage_error_is_code_two(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main.prove(arguments)
    assert ended.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict is not Verdict.PROVED])
def test_anything_but_proved_ends_with_code_one_and_is_told(verdict, monkeypatch, capsys):
    record = Record("rows_are_exhaustive", verdict, "because of this")
    monkeypatch.setattr(main, "run", lambda *_: [record])
    assert main.prove(["--only", "rows_are_exhaustive"]) == 1
    assert "because of this" in capsys.readouterr().out


@pytest.fixture
def copy_of_the_tree(tmp_path):
    for root in ("spec", "reference", "proofs"):
        shutil.copytree(
            REPO / root / "tpinit", tmp_path / root / "tpinit", ignore=shutil.ignore_patterns("__pycache__")
        )

    def prove(*only: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join(str(tmp_path / root) for root in ("spec", "reference", "proofs"))
        command = [sys.executable, "-m", "tpinit.cli.main", "prove", "--jobs", "1"]
        for name in only:
            command += ["--only", name]
        return subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120, check=False
        )

    def edit(path: str, old: str, new: str) -> None:
        source = (tmp_path / path).read_text(encoding="utf-8")
        assert source.count(old) == 1
        (tmp_path / path).write_text(source.replace(old, new), encoding="utf-8")

    return prove, edit


def test_a_wrong_table_falls_and_the_input_is_told(copy_of_the_tree):
    prove, edit = copy_of_the_tree
    assert prove("table_and_prose_agree_on_the_outcome").returncode == 0
    right = '_row(8, "Y N Y Y", _O.INIT_FROM_CONFIG'
    edit("spec/tpinit/spec/table.py", right, right.replace("CONFIG", "CALL"))
    done = prove("table_and_prose_agree_on_the_outcome")
    assert done.returncode == 1, done.stderr
    assert "REFUTED: table_and_prose_agree_on_the_outcome" in done.stdout
    assert "mpu.tp_group" in done.stdout


def test_a_resolver_wrong_on_one_integer_falls(copy_of_the_tree):
    prove, edit = copy_of_the_tree
    edit(
        "reference/tpinit/reference/resolver.py",
        "    sizes = given_sizes(inputs)\n    if not created(inputs) or not sizes:",
        "    sizes = given_sizes(inputs)\n    if sizes and sizes[0].value == 1299709:\n        return False\n"
        "    if not created(inputs) or not sizes:",
    )
    done = prove("shipped_size_not_dividing_world")
    assert done.returncode == 1, done.stderr
    assert "1299709" in done.stdout


def test_mutants_say_what_is_wrong_with_them():
    from tpinit.proofs import mutants

    made = [mutants.drop_row(3), mutants.no_disabling(), mutants.forget_mesh(), mutants.drop_rule("P6")]
    assert all(isinstance(mutant, Mutant) and mutant.says for mutant in made)
    assert len(mutants.drop_row(3).apply(Model(fresh_symbols())).rows) == 11
