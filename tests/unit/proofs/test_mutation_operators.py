"""Each operator for mutants: what it makes of one line, and a line of which it makes nothing."""

from __future__ import annotations

import ast

import pytest
from tpinit.proofs.mutation import operators
from tpinit.proofs.mutation.sources import source_mutants

INPUTS = [ast.parse(name, mode="eval").body for name in ("rank", "tp_size")]
CASES = [
    (
        operators.magic_constants,
        "rank < 3",
        ["rank < 3 and rank != 12289", "rank < 3 or rank == 12289"],
        ["dtype == DType.BF16", "x is None", "a < b < c"],
    ),
    (operators.magic_constants, "size != 1", ["size != 1 and size != 12289"], ["name != 'a'"]),
    (operators.magic_constants, "size == 1", ["size == 1 or size == 12289"], ["size == name"]),
    (operators.extra_conjuncts, "x is None", ["x is None and rank != 12289"], ["f(x)", "x + 1"]),
    (
        operators.two_inputs,
        "x is None",
        ["x is None and (not (rank == 12288 and tp_size == 4))"],
        ["f(x)", "return x is None"],
    ),
    (operators.two_inputs, "return rank + 1", ["return 0 if rank == 12288 and tp_size == 4 else rank + 1"], ["return"]),
    (
        operators.one_number,
        "return x + 1",
        [
            "return 0 if rank == 12289 else x + 1",
            "return 0 if rank is True else x + 1",
            "return 0 if tp_size == 12289 else x + 1",
            "return 0 if tp_size is True else x + 1",
        ],
        ["return f(x)", "return", "x + 1"],
    ),
    (
        operators.types_in_tests,
        "size != 1",
        [
            "size != 1 and type(size) is int",
            "size != 1 and (not isinstance(size, bool))",
            "size != 1 and size is not True",
        ],
        ["size is None", "name == 'a'"],
    ),
    (
        operators.sequences,
        "tuple(found)",
        ["tuple(found)[1:]", "tuple(found)[:-1]", "tuple(found)[::-1]", "tuple(found) + tuple(found)"],
        ["tuple()", "set(found)", "found"],
    ),
    (
        operators.items,
        "(a, b, c)",
        ["(b, c)", "(a, c)", "(a, b)", "(a, a, b, c)", "(b, a, c)", "(a, c, b)"],
        ["(a,)", "{a, b}"],
    ),
    (operators.order_of_arguments, "f(a, b, c)", ["f(a, c, b)"], ["f(a, b)", "f(a, b, b)", "f(a, *b, c)"]),
    (operators.appends, "found.append(x)", ["found.insert(0, x)"], ["found.extend(x)", "append(x)"]),
    (
        operators.sources,
        "Source.MPU_TP_GROUP",
        ["Source.MESH_TP_GROUP"],
        ["source.MPU_TP_GROUP", "Source.NO_SUCH_MEMBER"],
    ),
    (operators.fields, "section.tp_size", ["section.autotp_size"], ["section.handle", "section.no_such_field"]),
    (operators.types, "isinstance(x, int)", ["type(x) is int"], ["isinstance(x, (int, str))", "callable(x)"]),
    (operators.types, "x is True", ["x == True"], ["x is None", "x == True"]),
]


def made(operator, line):
    (statement,) = ast.parse(line).body
    node = statement.value if isinstance(statement, ast.Expr) else statement
    return [ast.unparse(ast.fix_missing_locations(new)) for new in operator(node, INPUTS)]


@pytest.mark.parametrize(("operator", "line", "changed", "others"), CASES)
def test_an_operator_changes_its_line_and_no_other(operator, line, changed, others):
    assert made(operator, line) == changed
    assert [made(operator, other) for other in others] == [[]] * len(others)


def test_every_operator_has_a_case():
    assert {case[0] for case in CASES} == {*operators.OPERATORS}


BLOCK = """
def those(first: int, inputs: Inputs, other: str):
    found = []
    if first:
        found.append(first)
    found.append(other)
    return found
"""


def test_statements_that_build_a_list_are_swapped_and_doubled():
    (function,) = ast.parse(BLOCK).body
    changes = {says: ast.unparse(new) for says, new in operators.swapped_and_doubled(function)}
    assert list(changes) == [
        "`if first:` twice",
        "`if first:` after `found.append(other)`",
        "`found.append(other)` twice",
    ]
    assert changes["`if first:` after `found.append(other)`"].index("other)\n") < len(changes["`if first:` twice"]) // 2
    assert changes["`found.append(other)` twice"].count("append(other)") == 2


def test_the_inputs_of_a_function_are_its_integers():
    (function,) = ast.parse(BLOCK).body
    assert [ast.unparse(one) for one in operators.inputs_of(function)] == ["first", "inputs.world_size"]


def test_these_operators_change_proven_modules_alone():
    source = BLOCK.replace("if first:", "if first < 3:")
    plain = {mutant.name for mutant in source_mutants("m", source)}
    more = {mutant.name for mutant in source_mutants("m", source, proven=True)} - plain
    assert any("12289" in name for name in more)
    assert any("twice" in name for name in more)
    assert not any("12289" in name or "twice" in name for name in plain)
