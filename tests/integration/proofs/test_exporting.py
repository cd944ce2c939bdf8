"""What is exported as SMT-LIB 2 is what is proven: two solvers read each file and answer as it says."""

from __future__ import annotations

import re

import cvc5
import pytest
import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
import z3
from tpinit.proofs import main
from tpinit.proofs.claims import THEOREMS, right_model
from tpinit.proofs.ledger.exporting import files
from tpinit.proofs.solvers import queries

BY_CLAIMS = [name for name, theorem in THEOREMS.items() if theorem.claims is not None]


def _by_z3(path) -> str:
    solver = z3.Solver(ctx=z3.Context())
    solver.from_file(str(path))
    return str(solver.check())


def _by_cvc5(path) -> str:
    solver = cvc5.Solver()
    parser = cvc5.InputParser(solver)
    parser.setFileInput(cvc5.InputLanguage.SMT_LIB_2_6, str(path))
    symbols, said = parser.getSymbolManager(), ""
    while not (command := parser.nextCommand()).isNull():
        said += command.invoke(solver, symbols)
    return said.strip()


def _status(path) -> str:
    (status,) = re.findall(r"^\(set-info :status (\w+)\)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return status


@pytest.mark.parametrize("name", BY_CLAIMS)
def test_every_file_is_decided_as_it_says_by_both_solvers(name, tmp_path, capsys):
    assert main.prove(["--only", name, "--smt2", str(tmp_path / "out")]) == 0
    written = sorted((tmp_path / "out").iterdir())
    expected = [query for claim in THEOREMS[name].claims(right_model()) for query in queries(claim)]
    assert len(written) == len(expected) > 0
    assert f"{len(expected)} queries written" in capsys.readouterr().out
    for path in written:
        assert re.fullmatch(rf"{name}\.\d\d\.(witness|counterexample|premises)\.smt2", path.name)
        assert _by_z3(path) == _by_cvc5(path) == _status(path), path.name


def test_a_file_says_what_it_asks():
    theorem = THEOREMS["rows_are_exhaustive"]
    (name, text), (other, _) = files(theorem)
    assert name == "rows_are_exhaustive.01.counterexample.smt2"
    assert other == "rows_are_exhaustive.01.premises.smt2"
    for said in ("; theorem: rows_are_exhaustive", "section 6.1", theorem.statement, "some row holds", "is unsat"):
        assert said in text
    assert "(set-info :status unsat)" in text


def test_a_file_whose_status_is_wrong_is_told_from_a_right_one(tmp_path):
    # A weaker question under the status of the right one.
    (_, text), *_ = files(THEOREMS["rows_are_exhaustive"])
    path = tmp_path / "weaker.smt2"
    assert text.count("(=> tpg tpi)") == 1
    path.write_text(text.replace("(=> tpg tpi)", "(=> tpg tpg)"), encoding="utf-8")
    assert (_by_z3(path), _status(path)) == ("sat", "unsat")
    assert "Expected result unsat but got sat" in _by_cvc5(path)  # cvc5 reads the status and says so itself


def test_a_theorem_that_an_engine_decides_has_no_queries():
    assert list(files(THEOREMS["shipped_row_number"])) == []
