"""`tpinit prove`: its exit codes, and contracts and resolvers that are wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
from tpinit.proofs import main
from tpinit.proofs.claims import THEOREMS, CheckResult, Mutant, Verdict
from tpinit.proofs.running import TheoremResult
from tpinit.spec.model import Model, fresh_symbols

REPO = Path(__file__).parents[3]
PROVED, REFUTED = CheckResult(Verdict.PROVED, 1), CheckResult(Verdict.REFUTED, 1)


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
    record = TheoremResult("rows_are_exhaustive", verdict, "because of this")
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
    assert all(isinstance(mutant, Mutant) and mutant.description for mutant in made)
    assert len(mutants.drop_row(3).apply(Model(fresh_symbols())).rows) == 11
