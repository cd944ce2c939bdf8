"""Reading decision tables: axioms, JSON, HJSON and Markdown, and every malformed one refused."""

import pytest
from tpinit.decision_tables.analysis import analyse
from tpinit.decision_tables.expressions import ExpressionError, parse
from tpinit.decision_tables.format import table_from
from tpinit.decision_tables.model import Condition, holds
from tpinit.decision_tables.report import as_object
from tpinit.decision_tables.source import loads
from tpinit.reference.errors import ConfigError


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


WHOLE = ("Y Y: a", "Y N: b", "N -: c")


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
        ("A = m", 5, "the same values"),
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
        (edited(conditions=["A", "A"]), ["conditions[1]", "already used by conditions[0]"]),
        (edited(conditions=[{"name": "A", "kind": "enumm"}]), ["conditions[0].kind", 'write "enum"']),
        (edited(conditions=[{"name": "A", "kind": "enum"}]), ["conditions[0].values: is missing"]),
        (edited(conditions=[{"name": "A", "values": ["x"]}]), ["has 1 items; 2 to"]),
        (
            edited(conditions=[{"name": "A", "values": ["x", "x", "-", True]}]),
            ["[1]", "twice", "values[2]", "values[3]"],
        ),
        (edited(conditions=[{"name": "A", "kind": "bool", "values": ["x", "y"]}]), ["has the values Y and N"]),
        (edited(rows=[ROW | {"id": 1}, ROW | {"id": "1"}]), ["rows[1]", "already used by rows[0]"]),
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
        (edited(axioms=[{"name": "x", "text": "A"}, {"name": "x", "text": "B"}]), ["already used by axioms[0]"]),
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
        ("| A | out | B |\n|---|---|---|\n| Y | a | Y |", "otherwise looks like a condition"),
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
    with pytest.raises(ConfigError, match="not Markdown"):
        loads("{}", "stdin", 1)
