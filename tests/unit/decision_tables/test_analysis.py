"""The analysis of decision tables: each kind of finding in a table that has it and in one that has not."""

import itertools
import json
import pathlib
import random

import pytest
from tpinit.decision_tables.analysis import Severity, analyse
from tpinit.decision_tables.format import read_table, table_from
from tpinit.decision_tables.report import KINDS, WIDTH, as_object, as_text
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
