"""Decision tables: each kind of finding in a table that has it and in one that has not; the readers' refusals."""

import itertools
import json
import pathlib
import random

import pytest
from tpinit.decision_tables.analysis import Severity, analyse
from tpinit.decision_tables.expressions import ExpressionError, parse
from tpinit.decision_tables.format import read_table, table_from
from tpinit.decision_tables.model import Condition, holds
from tpinit.decision_tables.report import KINDS, WIDTH, as_object, as_text
from tpinit.decision_tables.source import loads
from tpinit.reference.errors import ConfigError
from tpinit.spec.table import ROWS

TABLES = pathlib.Path(__file__).resolve().parents[3] / "examples" / "tables"


def table(*rows, axioms=(), conditions=("A", "B"), policy="unique"):
    """A table whose rows are `cells: outcome`."""
    return {
        "conditions": list(conditions),
        "axioms": list(axioms),
        "hit_policy": policy,
        "rows": [
            {"cells": cells.strip(), "outcome": outcome.strip()}
            for cells, _, outcome in (row.partition(":") for row in rows)
        ],
    }


def told(data, limit=20):
    return as_object(analyse(table_from(data), limit), limit)


def items(data, kind):
    return told(data)[kind]["items"]


# --- ours ------------------------------------------------------------------------------------------------


def test_the_shipped_table_is_the_one_of_the_spec():
    shipped = json.loads((TABLES / "tp_model_init.json").read_text(encoding="utf-8"))
    assert [condition["name"] for condition in shipped["conditions"]] == ["TPI", "TPG", "CFG", "MPU"]
    assert shipped["rows"] == [
        {
            "id": row.number,
            "cells": " ".join("Y" if fact else "N" for fact in (row.tpi, row.tpg, row.cfg, row.mpu)),
            "outcome": {
                "outcome": row.outcome.value,
                "code": None if row.code is None else row.code.value,
                "fields_from": row.fields_from.value,
                "group_from": row.group_from.value,
            },
        }
        for row in ROWS
    ]


def test_ours_is_clean_but_for_the_one_pair():
    found = analyse(read_table(str(TABLES / "tp_model_init.json")))
    assert (found.number(Severity.FINDING), found.number(Severity.NOTE), found.allowed) == (0, 1, 12)
    (pair,) = as_object(found, 20)["mergeable"]["items"]
    assert (pair["rows"], pair["condition"]) == (["10", "12"], "CFG")
    assert pair["merged"] == {"TPI": ["Y"], "TPG": ["Y"], "MPU": ["Y"]}


def test_without_its_axiom_ours_has_one_gap_and_the_axiom_is_found():
    data = json.loads((TABLES / "tp_model_init.json").read_text(encoding="utf-8"))
    del data["axioms"]
    answer = told(data)
    assert answer["inputs"] == {"all": 16, "allowed": 16, "uncovered": 4}
    assert [gap["where"] for gap in answer["gaps"]["items"]] == [{"TPI": ["N"], "TPG": ["Y"]}]
    assert [rule["text"] for rule in answer["missing_axioms"]["items"]] == ["TPG implies TPI"]
    assert answer["missing_axioms"]["closing"] == ["TPG implies TPI"]


def test_any_row_that_ours_loses_is_a_gap():
    data = json.loads((TABLES / "tp_model_init.json").read_text(encoding="utf-8"))
    for row in range(12):
        rest = [other for place, other in enumerate(data["rows"]) if place != row]
        answer = told(data | {"rows": rest})
        assert answer["inputs"]["uncovered"] == 1
        assert "".join(answer["gaps"]["items"][0]["witness"].values()) == data["rows"][row]["cells"].replace(" ", "")


# --- each kind, and its control --------------------------------------------------------------------------

WHOLE = ("Y Y: a", "Y N: b", "N -: c")
FINDINGS = [
    ("gaps", table("Y Y: a", "Y N: b", "N Y: c"), table(*WHOLE)),
    ("gaps", table("Y Y: a", "Y N: b", "N Y: c"), table("Y Y: a", "Y N: b", "N Y: c", axioms=["A or B"])),
    ("overlaps", table("Y -: a", "- Y: a", "N N: b"), table("Y -: a", "N Y: a", "N N: b")),
    ("overlaps", table("Y -: a", "- Y: a", "N N: b"), table("Y -: a", "- Y: a", "N N: b", axioms=["not (A and B)"])),
    ("conflicts", table("Y -: a", "- Y: b", "N N: b"), table("Y -: a", "- Y: a", "N N: b")),
    ("conflicts", table("Y -: a", "- Y: b", "N N: b"), table("Y -: a", "- Y: b", "N N: b", axioms=["A implies not B"])),
    ("unreachable", table(*WHOLE, axioms=["A"]), table(*WHOLE, axioms=["A or B"])),
    (
        "masked",
        table("Y -: a", "N -: b", "- Y: c", policy="first"),
        table("Y -: a", "N Y: b", "- -: c", policy="first"),
    ),
    ("subsumed", table("Y -: a", "Y Y: a", "N -: b"), table("Y N: a", "Y Y: a", "N -: b")),
    ("subsumed", table("Y Y: a", "Y N: a", "Y -: a", "N -: b"), table("Y Y: a", "Y N: b", "Y -: c", "N -: d")),
    ("mergeable", table("Y Y: a", "Y N: a", "N -: b"), table(*WHOLE)),
]


@pytest.mark.parametrize(("kind", "with_it", "without"), FINDINGS)
def test_each_kind_is_found_where_it_is_and_only_there(kind, with_it, without):
    assert items(with_it, kind)
    assert f"\n{kind}: {KINDS[kind]}\n" in as_text(analyse(table_from(with_it)), 20)
    assert items(without, kind) == []
    assert f"\n{kind}: " not in as_text(analyse(table_from(without)), 20)


def test_every_kind_has_such_a_pair():
    assert {kind for kind, _, _ in FINDINGS} == set(KINDS)


def test_what_the_items_say():
    assert items(FINDINGS[0][1], "gaps") == [
        {"where": {"A": ["N"], "B": ["N"]}, "inputs": 1, "witness": {"A": "N", "B": "N"}}
    ]
    assert items(FINDINGS[4][1], "conflicts") == [
        {
            "rows": ["1", "2"],
            "where": {"A": ["Y"], "B": ["Y"]},
            "outcomes": [{"outcome": "a"}, {"outcome": "b"}],
            "witness": {"A": "Y", "B": "Y"},
        }
    ]
    assert items(FINDINGS[6][1], "unreachable") == [{"row": "3", "axioms": ["axiom 1"], "witness": {"A": ["N"]}}]
    assert [row["by"] for row in items(FINDINGS[9][1], "subsumed")] == [["3"], ["3"], ["1", "2"]]


def test_a_row_is_excluded_by_the_axioms_that_are_needed_for_it():
    data = table("Y Y: a", "Y N: b", "N -: c", axioms=["B or not B", "A implies B", "not B or not A"])
    assert [row["axioms"] for row in items(data, "unreachable")] == [["axiom 3"], ["axiom 2"]]


@pytest.mark.parametrize(
    ("policy", "overlaps", "conflicts"),
    [("unique", "finding", "finding"), ("any", "allowed", "finding"), ("first", "allowed", "allowed")],
)
def test_what_the_hit_policy_allows(policy, overlaps, conflicts):
    data = table("Y -: a", "- Y: a", "- N: b", policy=policy)
    answer = told(data)
    assert (answer["overlaps"]["severity"], answer["conflicts"]["severity"]) == (overlaps, conflicts)
    assert (answer["overlaps"]["count"], answer["conflicts"]["count"]) == (1, 1)
    assert answer["findings"] == (overlaps == "finding") + (conflicts == "finding")


def test_a_missing_axiom_with_two_premises_and_none_at_all():
    conditions = ("A", "B", {"name": "m", "values": ["x", "y", "z"]})
    rows = ["N - -: a", "Y N -: a", "Y Y x: b"]
    answer = told(table(*rows, conditions=conditions))
    assert [rule["text"] for rule in answer["missing_axioms"]["items"]] == ["A and B implies m = x"]
    one_point = [f"{a} {b} {c} {d}: o{a}{b}{c}{d}" for a in "YN" for b in "YN" for c in "YN" for d in "YN"][1:]
    answer = told(table(*one_point, conditions="ABCD"))
    assert (answer["missing_axioms"]["items"], answer["missing_axioms"]["closing"]) == ([], None)
    assert answer["gaps"]["items"][0]["witness"] == dict.fromkeys("ABCD", "Y")


def test_a_constant_condition_is_a_missing_axiom():
    answer = told(table("Y Y: a", "Y N: b"))
    assert [rule["text"] for rule in answer["missing_axioms"]["items"]] == ["A"]


def test_no_gap_is_superfluous():
    """Checkered tables, in which the gaps that are found first can make one another superfluous."""
    points = list(itertools.product("NY", repeat=4))
    for seed in range(30):
        rng = random.Random(seed)
        rows = rng.sample(points, rng.randint(2, 8))
        found = analyse(table_from(table(*(" ".join(row) + ": x" for row in rows), conditions="ABCD")), 100)
        cubes = [
            {
                point
                for point in points
                if all(mask >> "NY".index(v) & 1 for mask, v in zip(gap.where, point, strict=True))
            }
            for gap in found.gaps
        ]
        assert set().union(*cubes) == set(points) - set(rows)
        for place, cube in enumerate(cubes):
            assert cube - set().union(*cubes[:place], *cubes[place + 1 :])


def test_rows_are_not_merged_past_one_that_decides_between_them():
    rows = ("Y Y: a", "- N: b", "Y N: a", "N Y: c")
    assert [item["rows"] for item in items(table(*rows), "mergeable")] == [["1", "3"]]
    assert items(table(*rows, policy="first"), "mergeable") == []
    moved = (rows[0], rows[2], rows[1], rows[3])
    assert [item["rows"] for item in items(table(*moved, policy="first"), "mergeable")] == [["1", "2"]]


def test_a_limit_says_that_there_is_more():
    rows = [f"{a} {b} {c}: x" for a, b, c in ("YYN", "YNY", "NYY", "NNN")]
    found = analyse(table_from(table(*rows, conditions="ABC")), 2)
    assert (len(found.gaps), found.gaps_complete, found.gap_inputs) == (2, False, 4)
    assert "2 findings or more: 4 inputs" in as_text(found, 2)
    assert analyse(table_from(table(*rows, conditions="ABC")), 4).gaps_complete


def test_axioms_that_contradict_each_other_are_refused_with_those_that_do():
    with pytest.raises(ConfigError, match=r"axiom 1: A; axiom 3: not A: no input") as caught:
        analyse(table_from(table(*WHOLE, axioms=["A", "B", "not A"])))
    assert "axiom 2" not in str(caught.value)
    with pytest.raises(ConfigError, match="no input satisfies this axiom"):
        analyse(table_from(table(*WHOLE, axioms=["A and not A"])))


def test_the_report_keeps_its_width():
    data = table("Y Y: " + "word " * 60, "Y -: b", conditions=("a" * 50, "b" * 45))
    assert max(map(len, as_text(analyse(table_from(data)), 20).splitlines())) <= WIDTH


# --- axioms ----------------------------------------------------------------------------------------------

CONDITIONS = (
    Condition("A", ("N", "Y"), True),
    Condition("B", ("N", "Y"), True),
    Condition("m", ("x", "y z", "w"), False),
    Condition("n", ("x", "y z", "w"), False),
    Condition("a name", ("N", "Y"), True),
)


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("A or B and A", lambda a, b, m, n, q: a or (b and a)),
        ("not A and B", lambda a, b, m, n, q: not a and b),
        ("A implies B implies A", lambda a, b, m, n, q: True),
        ("(A implies B) => A", lambda a, b, m, n, q: not (not a or b) or a),
        ("A iff B", lambda a, b, m, n, q: a == b),
        ("A <=> B or A", lambda a, b, m, n, q: a == (b or a)),
        ("A -> B", lambda a, b, m, n, q: not a or b),
        ("!A || B && A", lambda a, b, m, n, q: not a or b),
        ("A = N", lambda a, b, m, n, q: not a),
        ("A != no", lambda a, b, m, n, q: a),
        ("A = B", lambda a, b, m, n, q: a == b),
        ("m = n", lambda a, b, m, n, q: m == n),
        ("m != 'y z'", lambda a, b, m, n, q: m != 1),
        ('m in {x, "y z"}', lambda a, b, m, n, q: m in (0, 1)),
        ('not not "a name"', lambda a, b, m, n, q: q),
        ("true and not false", lambda a, b, m, n, q: True),
    ],
)
def test_what_axioms_mean(text, true):
    expr = parse(text, CONDITIONS)
    for a, b, m, n, q in (
        (a, b, m, n, q) for a in (0, 1) for b in (0, 1) for m in range(3) for n in range(3) for q in (0, 1)
    ):
        assert holds(expr, (a, b, m, n, q)) == bool(true(a, b, m, n, q))


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("A implis B", 3, 'write "implies"'),
        ("A and", 6, "the text ends"),
        ("", 1, "the text ends"),
        ("A and C", 7, "no such condition"),
        ("(A or B", 8, "closing parenthesis"),
        ("A or B)", 7, "an operator or the end"),
        ("m", 1, "not Boolean"),
        ("m = q", 5, "no such value"),
        ("m in x", 6, "set of values"),
        ("m in {x; w}", 8, "does not belong"),
        ("A = m", 5, "other values"),
        ("A and 'B", 7, "no closing quote"),
        ("(" * 100, 61, "nests at most"),
        ("A iff " * 100 + "A", 367, "at most 60 iff"),
        ("not " * 3000 + "A", 10_000, "at most 10000 letters"),
    ],
)
def test_errors_point_at_their_column(text, column, words):
    with pytest.raises(ExpressionError) as caught:
        parse(text, CONDITIONS)
    assert caught.value.column == column
    assert words in f"{caught.value.message}; {caught.value.fix}"


def test_long_axioms_are_analysed():
    long = ["A implies " * 900 + "B or not A", "A iff " * 60 + "A", "not " * 2000 + "A or B", "(" * 59 + "A" + ")" * 59]
    for text in long:
        assert told(table(*WHOLE, axioms=[text]))["inputs"]["all"] == 4


# --- malformed tables ------------------------------------------------------------------------------------


def edited(**changes):
    return table(*WHOLE) | changes


ROW = {"cells": "Y Y", "outcome": "a"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], ["a table must be an object"]),
        ({}, ["conditions: is missing", "rows: is missing"]),
        (edited(axiom=[]), ["axiom: there is no such key", 'write "axioms"']),
        (edited(hit_policy="uniqe"), ["hit_policy", 'write "unique"']),
        (edited(rows=[]), ["rows: has 0 items"]),
        (edited(rows={}), ["rows = {}: must be a list"]),
        (edited(conditions=[]), ["conditions: has 0 items"]),
        (edited(conditions=["A", "A"]), ["conditions[1]", "already that of conditions[0]"]),
        (edited(conditions=[{"name": "A", "kind": "enumm"}]), ["conditions[0].kind", 'write "enum"']),
        (edited(conditions=[{"name": "A", "kind": "enum"}]), ["conditions[0].values: is missing"]),
        (edited(conditions=[{"name": "A", "values": ["x"]}]), ["has 1 items; 2 to"]),
        (
            edited(conditions=[{"name": "A", "values": ["x", "x", "-", True]}]),
            ["[1]", "twice", "values[2]", "values[3]"],
        ),
        (edited(conditions=[{"name": "A", "kind": "bool", "values": ["x", "y"]}]), ["has the values Y and N"]),
        (edited(rows=[ROW | {"id": 1}, ROW | {"id": "1"}]), ["rows[1]", "already that of rows[0]"]),
        (edited(rows=[{"cells": "Y Y"}]), ["rows[0].outcome: is missing"]),
        (edited(rows=[ROW | {"outcom": 1}]), ["rows[0].outcom", 'write "outcome"']),
        (edited(rows=[ROW | {"cells": "Y"}]), ["there are 1 cells and 2 conditions"]),
        (edited(rows=[ROW | {"cells": "Y X"}]), ["rows[0].cells[1]", '"X"', "no such value"]),
        (edited(rows=[ROW | {"cells": {"A": True, "C": True}}]), ["rows[0].cells.C: there is no such condition"]),
        (edited(rows=[ROW | {"cells": {"A": []}}]), ["an empty list matches nothing"]),
        (edited(rows=[ROW | {"cells": {"A": 1, "B": None}}]), ["rows[0].cells.A = 1", "rows[0].cells.B = null"]),
        (edited(rows=[ROW | {"outcome": {}}]), ["an outcome is"]),
        (edited(rows=[ROW | {"outcome": {"x": []}}]), ["rows[0].outcome.x"]),
        (
            edited(rows=[ROW, ROW | {"outcome": {"outcom": "a"}}]),
            ["rows[1].outcome.outcom", 'write "outcome"', "missing"],
        ),
        (edited(axioms=["A and Q"]), ["axioms[0]", "column 7", "no such condition"]),
        (edited(axioms=[{"name": "x"}]), ["axioms[0].text: is missing"]),
        (edited(axioms=[{"name": "x", "text": "A"}, {"name": "x", "text": "B"}]), ["already that of axioms[0]"]),
        (edited(axioms=[3]), ["an axiom is a text or an object"]),
    ],
)
def test_malformed_tables_are_refused(data, words):
    with pytest.raises(ConfigError) as caught:
        table_from(data)
    for word in words:
        assert word in str(caught.value)


def test_all_problems_come_at_once():
    rows = [{"cells": "Y Q", "outcome": "a"}, {"cells": "N", "outcome": "a"}, {"outcome": []}]
    with pytest.raises(ConfigError) as caught:
        table_from(edited(rows=rows, axioms=["A and", "Q"]))
    assert [problem.path for problem in caught.value.problems] == [
        "axioms[0]",
        "axioms[1]",
        "rows[0].cells[1]",
        "rows[1].cells",
        "rows[2].cells",
        "rows[2].outcome",
    ]


def test_all_forms_of_cells_mean_the_same():
    conditions = ["A", {"name": "n", "values": [1, 2, 4]}]
    forms = ["Y 2,4", ["Y", [2, "4"]], [True, ["2", 4]], {"A": "yes", "n": [2, 4]}]
    read = {table_from(edited(conditions=conditions, rows=[ROW | {"cells": form}])).rows[0].cells for form in forms}
    assert read == {(0b10, 0b110)}
    assert table_from(edited(rows=[ROW | {"cells": {"B": "N"}}])).rows[0].cells == (0b11, 0b01)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"rows": 1, "rows": 2}', "given more than once"),
        ("{", "neither JSON"),
        ("[" * 100_000, "too deeply"),
    ],
)
def test_texts_that_are_no_data(text, words):
    with pytest.raises(ConfigError, match=words):
        loads(text, "stdin")


def test_hjson_is_read():
    rows = '{cells: "Y", outcome: "a"}, {cells: "N", outcome: "b"},'
    text = f'{{\n  # a comment\n  conditions: ["A",]\n  rows: [{rows}]\n}}'
    assert len(table_from(loads(text, "stdin")).rows) == 2


# --- Markdown --------------------------------------------------------------------------------------------

MARKDOWN = """
Some words. Axiom A0: B implies A

- Axiom: not (A and m = z)

Hit policy: `any`

| # | A B | m {x, y, z} | result | > flag |
|---|:---:|---|---|---|
| 1 | Y * | `x`, y | go | Y |
| 2 | N N | - | - | N |
"""


def test_a_markdown_table():
    read = table_from(loads(MARKDOWN, "stdin"))
    assert [condition.name for condition in read.conditions] == ["A", "B", "m"]
    assert [row.cells for row in read.rows] == [(0b10, 0b11, 0b011), (0b01, 0b01, 0b111)]
    assert read.rows[0].outcome == (("flag", '"Y"'), ("result", '"go"'))
    assert [axiom.text for axiom in read.axioms] == ["not (A and m = z)"]
    assert read.policy.value == "any"


def test_a_named_axiom_begins_its_line():
    read = table_from(loads(MARKDOWN.replace("Some words. ", ""), "stdin"))
    assert (read.axioms[0].name, read.axioms[0].text) == ("A0", "B implies A")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("| A | B | out |\n|---|---|---|\n| Y | X | a |\n| N | Y | b |", 'line 3 = "X": in the column "B"'),
        ("| A | out | B |\n|---|---|---|\n| Y | a | Y |", "else looks like a condition"),
        ("| A | out |\n|---|---|\n| Y |", "line 3.*1 cells and the head has 2"),
        ("| only | words |\n|---|---|\n| a | b |", "conditions"),
        ("| A | out |\n|---|---|\n| Y | a |\n\n| B | out |\n|---|---|\n| Y | a |", "1 in line 1, 2 in line 5"),
        ("| no table", "no decision table"),
        ("| A | B |\n|---|---|\n| Y | Y |", "outcome"),
    ],
)
def test_markdown_that_is_no_decision_table(text, words):
    with pytest.raises(ConfigError, match=words):
        table_from(loads(text, "stdin"))


def test_one_of_several_markdown_tables():
    text = "| A | out |\n|---|---|\n| Y | a |\n\n| B | out |\n|---|---|\n| Y | a |"
    assert table_from(loads(text, "stdin", 2)).conditions[0].name == "B"
    with pytest.raises(ConfigError, match="the text has 2 tables"):
        loads(text, "stdin", 3)
    with pytest.raises(ConfigError, match="none"):
        loads("{}", "stdin", 1)
