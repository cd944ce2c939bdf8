"""Ledgers compared with the committed one, and the command that writes them."""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import tpinit.proofs.theorems  # noqa: F401 - registers the theorems
import z3
from tpinit.proofs import main, report
from tpinit.proofs.claims import THEOREMS, Claim
from tpinit.proofs.ledger import comparing, entries
from tpinit.proofs.ledger.cores import needs
from tpinit.proofs.ledger.page import page
from tpinit.proofs.running import judge
from tpinit.reference import resolver

from support.paths import ROOT

COMMITTED = json.loads((ROOT / "docs/ledger.json").read_text(encoding="utf-8"))
X, Y = z3.Ints("x y")


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
    assert ("a different version" in told) == (path[0] == "versions")


def test_what_is_gone_and_what_is_new_are_told():
    (gone,) = _changed(lambda ledger: ledger["theorems"].pop("rows_are_exhaustive"))
    assert gone.startswith("theorems.rows_are_exhaustive: is missing now; committed is {")
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
    assert "The run took 61 seconds." in timed


def test_the_page_tells_what_is_not_proven():
    ledger = copy.deepcopy(COMMITTED)
    ledger["summary"]["proven"] -= 1
    ledger["theorems"]["rows_are_exhaustive"]["verdict"] = "refuted"
    ledger["necessity"]["row 7"] = {"theorem": "", "falls": ""}
    text = page(ledger)
    total, parts = len(ledger["theorems"]), len(ledger["necessity"])
    assert f"<strong>1 of {total} theorems are not proven.</strong>" in text
    assert f"<strong>Without 1 of {parts} parts of the contract, every theorem still holds.</strong>" in text
    assert f"All {total} theorems are proven" in page(COMMITTED)
    assert '<span class="badge">refuted</span>' in text
    assert "<strong>no theorem is false</strong>" in text
