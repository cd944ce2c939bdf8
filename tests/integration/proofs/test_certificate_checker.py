"""The checker of certificates: it verifies refutations, rejects forgeries, and shares nothing with what wrote them."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pysat.solvers import Cadical153
from tpinit.proofs.certificates import check as checker
from tpinit.proofs.certificates import encoding
from tpinit.proofs.certificates.check import RejectedCertificate, check
from tpinit.proofs.certificates.refuting import bound


def cnf(*clauses, variables=3):
    body = "".join(" ".join(map(str, (*clause, 0))) + "\n" for clause in clauses)
    return f"p cnf {variables} {len(clauses)}\n{body}".encode()


def proof(formula, *steps):
    return f"c cnf-sha256 {hashlib.sha256(formula).hexdigest()}\n".encode() + "".join(f"{s}\n" for s in steps).encode()


def rejection(formula, steps):
    with pytest.raises(RejectedCertificate) as caught:
        check(formula, steps)
    return str(caught.value)


SQUARE = cnf((1, 2), (1, -2), (-1, 2), (-1, -2))


# --- the checker -------------------------------------------------------------------------------------


def test_a_refutation_is_verified_and_its_steps_are_counted():
    said = check(SQUARE, proof(SQUARE, "c in words", "1 0", "d 1 2 0", "0"))
    assert (said.variables, said.clauses, said.lemmas, said.deletions) == (3, 4, 2, 1)


def test_the_empty_clause_is_derived_even_where_propagation_alone_refutes():
    formula = cnf((1,), (-1, 2), (-2,))
    assert check(formula, proof(formula, "0")).lemmas == 1
    assert "without the empty clause" in rejection(formula, proof(formula))


def test_the_empty_clause_of_a_formula_refutes_it():
    formula = cnf((1,), ())
    assert check(formula, proof(formula, "0")).lemmas == 1


def test_a_lemma_that_does_not_follow_by_propagation_is_rejected():
    assert "line 2: does not follow" in rejection(SQUARE, proof(SQUARE, "0"))
    assert "line 3: does not follow" in rejection(SQUARE, proof(SQUARE, "c 0", "3 0", "1 0", "0"))


def test_a_formula_with_a_model_has_no_proof():
    formula = cnf((1, 2), (-1, 2))
    assert "line 3: does not follow" in rejection(formula, proof(formula, "2 0", "0"))


@pytest.mark.parametrize("steps", [(), ("1 0",), ("c 0",), ("1 0", "2 0")])
def test_a_proof_that_stops_before_the_empty_clause_is_rejected(steps):
    assert "without the empty clause" in rejection(SQUARE, proof(SQUARE, *steps))


def test_what_was_deleted_can_no_longer_be_used():
    steps = ("d 1 2 0", "d -2 1 0", "1 0", "0")
    assert "line 4: does not follow" in rejection(SQUARE, proof(SQUARE, *steps))


def test_a_deleted_unit_no_longer_propagates():
    formula = cnf((1,), (-1, 2), (-1, -2))
    assert check(formula, proof(formula, "0"))
    assert "does not follow" in rejection(formula, proof(formula, "d 1 0", "0"))


def test_a_clause_is_there_as_often_as_it_was_given():
    twice = cnf((1, 2), (2, 1), (1, -2), (-1, 2), (-1, -2))
    assert check(twice, proof(twice, "d 2 1 0", "1 0", "0")).deletions == 1
    assert "does not follow" in rejection(twice, proof(twice, "d 1 2 0", "d 1 2 0", "1 0", "0"))
    assert "not there" in rejection(twice, proof(twice, "d 1 2 0", "d 1 2 0", "d 1 2 0"))


def test_a_deletion_of_what_is_not_there_is_rejected():
    assert "line 2: deletes" in rejection(SQUARE, proof(SQUARE, "d 1 3 0", "1 0", "0"))


def test_nothing_follows_the_empty_clause():
    assert "after the empty clause" in rejection(SQUARE, proof(SQUARE, "1 0", "0", "2 0"))


MALFORMED_STEPS = [
    *("1", "1 0 0", "1 2 0 3 0", "+1 0", "01 0", "1_0 0", "-0", "--1 0", "1.0 0", "x 0", "", " 1 0", "1 0 ", "1  0"),
    *(
        "d",
        "d 0 d",
        "D 1 0",
        "d1 0",
        "d d 1 0",
        "1\t0",
        "1 0\r",
        "comment",
        "e 1 0",
        "9999999999999 0",
        "4 0",
        "d -4 0",
    ),
    *("1 0\x0b0", "1 0\x1c", "o proof DRUP"),
]


@pytest.mark.parametrize("step", MALFORMED_STEPS)
def test_a_malformed_step_is_refused(step):
    assert "proof, line 2" in rejection(SQUARE, proof(SQUARE, step, "1 0", "0"))


MALFORMED_FORMULAS = [
    b"",
    b"\n",
    b"1 0\n",
    b"c p cnf 1 1\n",
    b"p cnf 1 1\n",
    b"p cnf 1 1\n1 0",
    b"p cnf 1 1\n1\n",
    b"p cnf 1 1\n1 0\n-1 0\n",
    b"p cnf 1 2\n1 0\n",
    b"p cnf 1 2\n1 0 -1 0\n",
    b"p cnf 1 2\n2 0\n-2 0\n",
    b"p cnf 1 2\n1 0\np cnf 1 2\n-1 0\n",
    b"p dnf 1 2\n1 0\n-1 0\n",
    b"p cnf 1 -2\n1 0\n-1 0\n",
    b"p cnf 1 2 \n1 0\n-1 0\n",
    b"p cnf 1 2\n1 0\n\n-1 0\n",
    b"p cnf 1 2\n1 0\n-1 0\n%\n0\n",
    b"p cnf 1 2\r\n1 0\r\n-1 0\r\n",
    b"p cnf 1 2\n1 0\n\xe2\x88\x921 0\n",
    b"p cnf 1 2\n1 0\n\xef\xbc\x91 0\n",
]


@pytest.mark.parametrize("formula", MALFORMED_FORMULAS)
def test_a_malformed_formula_is_refused(formula):
    assert rejection(formula, proof(formula, "0")).startswith("cnf")


def test_a_proof_names_the_formula_it_is_of():
    assert check(SQUARE, proof(SQUARE, "1 0", "0"))
    for text in (b"", b"\n", b"1 0\n0\n", proof(SQUARE, "1 0", "0").replace(b"sha256", b"sha512")):
        assert "first line must be" in rejection(SQUARE, text)
    changed = b"c another comment\n" + SQUARE
    assert "different SHA-256" in rejection(changed, proof(SQUARE, "1 0", "0"))


CLAUSES = st.lists(st.lists(st.integers(1, 4).map(int) | st.integers(-4, -1), max_size=3), max_size=12)


def has_a_model(clauses):
    return any(
        all(any((literal > 0) is model[abs(literal) - 1] for literal in clause) for clause in clauses)
        for model in product((False, True), repeat=4)
    )


@given(CLAUSES, CLAUSES)
def test_the_checker_verifies_nothing_that_has_a_model(clauses, lemmas):
    formula = cnf(*clauses, variables=4)
    steps = [" ".join(map(str, (*lemma, 0))) for lemma in lemmas if lemma]
    try:
        check(formula, proof(formula, *steps, "0"))
    except RejectedCertificate:
        return
    assert not has_a_model(clauses)


@given(st.lists(st.lists(st.sampled_from([-4, -3, -2, -1, 1, 2, 3, 4]), min_size=1, max_size=3), max_size=40))
def test_what_the_sat_solver_refutes_is_verified_and_nothing_else(clauses):
    with Cadical153(bootstrap_with=clauses, with_proof=True) as solver:
        satisfiable = solver.solve()
        steps = [] if satisfiable else solver.get_proof()
    assert satisfiable is has_a_model(clauses)
    formula = cnf(*clauses, variables=4)
    if not satisfiable:
        assert check(formula, bound(steps, formula)).lemmas > 0


# --- that it shares nothing ---------------------------------------------------------------------------


def imports(module):
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_checker_imports_the_standard_library_alone():
    assert {name.partition(".")[0] for name in imports(checker)} <= sys.stdlib_module_names
    assert any(name.startswith("tpinit") for name in imports(encoding))  # the test can tell


def test_the_encoder_and_the_writer_know_no_model_and_no_z3():
    code = (
        "import sys, tpinit.proofs.certificates.refuting; "
        "print([name for name in ('z3', 'tpinit.spec.model') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def run_checker(*arguments):
    return subprocess.run(
        [sys.executable, "-I", "-S", checker.__file__, *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_the_checker_runs_as_a_script_without_the_project(tmp_path):
    right, wrong, formula = tmp_path / "right.drup", tmp_path / "wrong.drup", tmp_path / "square.cnf"
    formula.write_bytes(SQUARE)
    right.write_bytes(proof(SQUARE, "1 0", "0"))
    wrong.write_bytes(proof(SQUARE, "0"))
    done = run_checker(formula, right)
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "s VERIFIED", "")
    for arguments in ((formula, wrong), (right, formula), (formula, tmp_path / "none"), (tmp_path, right)):
        done = run_checker(*arguments)
        assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (1, "s NOT VERIFIED", "")
    assert run_checker(formula).returncode == 2
