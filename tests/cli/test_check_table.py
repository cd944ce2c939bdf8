"""`tpinit check-table`, as users run it: every documented command, its exit codes, and its refusals."""

import json
import re

import pytest

from support.paths import ROOT

TABLES = ROOT / "examples" / "tables"
MANUAL = (ROOT / "docs" / "check-table.md").read_text(encoding="utf-8")
GAP = '{"conditions": ["A"], "rows": [{"cells": "Y", "outcome": "a"}]}'
WHOLE = '{"conditions": ["A"], "rows": [{"cells": "Y", "outcome": "a"}, {"cells": "N", "outcome": "b"}]}'


def test_ours_has_no_findings_and_one_note(tpinit):
    result = tpinit("check-table", TABLES / "tp_model_init.json")
    assert (result.returncode, result.stderr) == (0, b"")
    assert "rows 10, 12: one outcome, and only CFG differs" in result.stdout.decode()
    assert result.stdout.decode().endswith("verdict: 0 findings, 1 note\n")


def test_strict_lets_notes_fail_and_only_notes(tpinit):
    assert tpinit("check-table", TABLES / "tp_model_init.json", "--strict").returncode == 1
    assert tpinit("check-table", "-", "--strict", stdin=WHOLE).returncode == 0


def test_the_other_example_has_what_its_page_says(tpinit):
    result = tpinit("check-table", TABLES / "shipping.md", "--json")
    answer = json.loads(result.stdout)
    assert result.returncode == 1
    kinds = ("gaps", "conflicts", "overlaps", "unreachable", "subsumed", "mergeable")
    assert [answer[kind]["count"] for kind in kinds] == [2, 1, 1, 1, 1, 0]
    assert max(map(len, tpinit("check-table", TABLES / "shipping.md").stdout.decode().splitlines())) <= 100


def test_the_manual_shows_the_real_answer(tpinit):
    (shown,) = re.findall(r"\$ tpinit table --markdown \| tpinit check-table -\n(.*?)```", MANUAL, re.S)
    ours = tpinit("table", "--markdown").stdout
    result = tpinit("check-table", "-", stdin=ours)
    assert (result.returncode, result.stdout.decode()) == (1, shown)
    assert tpinit("check-table", "-", "--axiom", "TPG implies TPI", stdin=ours).returncode == 0


def test_the_manual_s_table_is_read_and_so_is_the_one_of_the_help(tpinit):
    (table,) = re.findall(r"```json\n(.*?)```", MANUAL, re.S)
    answer = json.loads(tpinit("check-table", "-", "--json", stdin=table).stdout)
    assert (answer["rows"], answer["inputs"]["allowed"]) == (3, 4)
    text = tpinit("check-table", "--help").stdout.decode()
    table = text[text.index("  {\n") : text.index("\n  }\n") + 4]
    assert tpinit("check-table", "-", stdin=table).returncode == 0


def test_the_manual_s_markdown_is_read(tpinit):
    (table,) = re.findall(r"```\n(Axiom A0.*?)```", MANUAL, re.S)
    answer = json.loads(tpinit("check-table", "-", "--json", stdin=table).stdout)
    assert [axiom["name"] for axiom in answer["axioms"]] == ["A0"]
    assert [condition["name"] for condition in answer["conditions"]] == ["member", "express", "cart"]


def test_the_manual_names_every_key_and_option(tpinit):
    answer = json.loads(tpinit("check-table", "-", "--json", stdin=WHOLE).stdout)
    named = set(re.findall(r"`(\w+)`", MANUAL.partition("## The JSON answer")[2]))
    assert set(answer) - named == set()
    assert set(answer["missing_axioms"]) - named == set()
    text = tpinit("check-table", "--help").stdout.decode()
    for option in set(re.findall(r"--[a-z]+", text)) - {"--help", "--markdown"}:
        assert f"`{option}" in MANUAL


def test_the_help(tpinit):
    text = tpinit("check-table", "--help").stdout.decode()
    assert text.startswith("usage: tpinit check-table")
    assert "exit codes:" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "\n    check-table" in tpinit("--help").stdout.decode()


@pytest.mark.parametrize(("table", "code"), [(GAP, 1), (WHOLE, 0)])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_exit_codes(tpinit, table, code, form):
    assert tpinit("check-table", tpinit.write(table, "table.json"), *form).returncode == code


def test_a_limit(tpinit):
    rows = [f"{{'cells': '{a} {b} {c}', 'outcome': 'x'}}" for a, b, c in ("YYN", "YNY", "NYY", "NNN")]
    table = f"{{'conditions': ['A', 'B', 'C'], 'rows': [{', '.join(rows)}]}}".replace("'", '"')
    answer = json.loads(tpinit("check-table", "-", "--json", "--limit", "2", stdin=table).stdout)
    assert (len(answer["gaps"]["items"]), answer["gaps_complete"], answer["inputs"]["uncovered"]) == (2, False, 4)


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        ((), "", ["FILE"]),
        (("nowhere.json",), "", ["nowhere.json", "there is no such file"]),
        ((".",), "", ["not a regular file"]),
        (("-",), "", ["no text"]),
        (("-",), b"\xff\xfe", ["not UTF-8"]),
        (("-",), "[]", ["a table must be an object"]),
        (("-",), GAP.replace("rows", "row"), ["row: there is no such key", 'write "rows"', "rows: is missing"]),
        (("-",), GAP.replace('"Y"', '"X"'), ["rows[0].cells[0]", "write N, Y or -"]),
        (("-", "--axiom", "A implis A"), GAP, ["--axiom", "column 3", 'write "implies"']),
        (("-", "--axiom", "A", "--axiom", "not A"), GAP, ["axiom 1: A; axiom 2: not A", "no input satisfies"]),
        (("-", "--limit", "0"), GAP, ["--limit", "'0'"]),
        (("-", "--table", "2"), "| A | o |\n|---|---|\n| Y | a |", ["the text has 1 tables"]),
    ],
)
def test_refusals(tpinit, refused, arguments, stdin, words):
    refused(tpinit("check-table", *arguments, stdin=stdin), *words)


def test_a_table_can_be_checked_where_it_stands_in_a_document(tpinit):
    other = "| name | meaning |\n|---|---|\n| A | some |"
    document = f"# Rules\n\n{other}\n\n| A B | out |\n|---|---|\n| Y - | a |\n| N Y | b |\n"
    answer = json.loads(tpinit("check-table", tpinit.write(document, "page.md"), "--json").stdout)
    assert [gap["witness"] for gap in answer["gaps"]["items"]] == [{"A": "N", "B": "N"}]


def test_control_letters_never_reach_a_terminal(tpinit):
    table = json.dumps(json.loads(WHOLE) | {"title": "\x1b[31m\x07"})
    result = tpinit("check-table", "-", stdin=table)
    assert result.returncode == 0
    assert b"\x1b" not in result.stdout
    assert b"\\x1b[31m" in result.stdout


def test_of_many_problems_the_first_are_told(tpinit):
    rows = ", ".join('{"cells": "X", "outcome": "a"}' for _ in range(300))
    result = tpinit("check-table", "-", stdin=f'{{"conditions": ["A"], "rows": [{rows}]}}')
    text = result.stderr.decode()
    assert result.returncode == 2
    assert "malformed input, 300 problems:" in text
    assert text.endswith("... and 280 more\n")
    assert len(text.splitlines()) == 42


def test_without_the_solver_the_extra_is_named(tpinit, refused):
    import subprocess
    import sys

    without = (
        "import sys; sys.modules['z3'] = None; from tpinit.cli import main as m; m.find_spec = lambda name: None; "
    )
    code = f"{without}sys.exit(m.main(['check-table', 'x.json']))"
    refused(subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60), "tpinit[proofs]", "z3")
