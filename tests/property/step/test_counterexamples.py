"""Programs on which a rule could be fooled, each written by hand: what is claimed about them must be true, or nothing
is.

Each program has one thing that is easily overlooked: an argument that differs on one rank, a mask that broadcasts along
another dimension, ids that were zeroed before. All are judged on numbers, like the drawn programs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from property.step.step_arrays import exact
from property.step.step_programs import Program
from property.step.step_values import Values
from tpinit.step.graph import Ref
from tpinit.step.lift import Failure

HALVES = (((0, 2),), ((2, 2),))


def _ids(program: Program, numbers: list[int]) -> Ref:
    return Ref(program.leaf("ids", exact(numbers), [None], "int64"))


def _in_range(program: Program, ids: Ref, ranges: list[tuple[int, int]]) -> Ref:
    above = program.run("ge", *[(ids, low) for low, _ in ranges], dtype="bool")[0]
    below = program.run("lt", *[(ids, high) for _, high in ranges], dtype="bool")[0]
    return Ref(program.run("bitwise_and", (Ref(above), Ref(below)), dtype="bool")[0])


def _local_ids(program: Program, ids: Ref, mask: Ref, lows: list[int]) -> Ref:
    shifted = Ref(program.run("sub", *[(ids, low, 1) for low in lows], dtype="int64")[0])
    zero = Ref(program.leaf("zero", exact(0), []))
    zero = Ref(program.run("mul", (zero, 0), dtype="int64")[0])
    return Ref(program.run("where", (mask, shifted, zero), dtype="int64")[0])


def _parts_are_empty_on_one_rank(program: Program) -> None:
    first = program.leaf("a", exact([1, 2]), [((), ((0, 2),))])
    second = program.leaf("b", exact([3, 4]), [None])
    program.run("cat", ((Ref(first), Ref(second)), 0))


def _ranks_sum_different_dimensions(program: Program) -> None:
    x = program.leaf("a", exact([[1, 2], [3, 4], [5, 6], [7, 8]]), [HALVES, None])
    program.run("sum", (Ref(x), (0,), False, None), (Ref(x), (1,), False, None))


def _a_gathered_part_is_used(program: Program) -> None:
    x = program.leaf("a", exact([1, 2, 3, 4]), [HALVES])
    first, _ = program.run("collective.all_gather", (Ref(x), None))
    program.run("silu", (Ref(first),))


def _one_part_is_joined_with_itself(program: Program) -> None:
    x = Ref(program.leaf("a", exact([1, 2]), [((), ((0, 2),))]))
    program.run("cat", ((x, x), 0))


def _a_mask_broadcasts_along_the_features(program: Program) -> None:
    ids = _ids(program, [0, 3, 1])
    table = program.leaf("table", exact([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 0, 1]]), [HALVES, None])
    mask = _in_range(program, ids, [(0, 2), (2, 4)])
    own = _local_ids(program, ids, mask, [0, 2])
    rows = program.run("embedding", (Ref(table), own, -1, False, False))[0]
    outside = program.run("bitwise_not", (mask,), dtype="bool")[0]
    program.run("masked_fill", (Ref(rows), Ref(outside), 0))


def _ids_are_zeroed_in_a_smaller_range(program: Program) -> None:
    ids = _ids(program, [0, 1, 2, 3])
    small = _in_range(program, ids, [(0, 1), (2, 3)])
    own = _local_ids(program, ids, small, [0, 2])
    large = _in_range(program, ids, [(0, 2), (2, 4)])
    zero = Ref(program.run("mul", (ids, 0), dtype="int64")[0])
    program.run("where", (large, own, zero), dtype="int64")


def _a_zero_has_addends(program: Program) -> None:
    ids = _ids(program, [0, 1, 2, 3])
    mask = _in_range(program, ids, [(0, 2), (2, 4)])
    shifted = Ref(program.run("sub", (ids, 0, 1), (ids, 2, 1), dtype="int64")[0])
    x = program.leaf("a", exact([[1, 2, 3, 4], [5, 6, 7, 8]]), [(((0, 1),), ((1, 1),)), None])
    one = Ref(program.run("sum", (Ref(x), (0,), False, None))[0])  # each rank has an addend
    whole = Ref(program.run("collective.all_reduce", (one, "sum"))[0])
    half = Ref(program.run("slice", (whole, 0, 0, 2, 1), (whole, 0, 2, 4, 1))[0])
    held = Ref(program.run("slice", (one, 0, 0, 4, 1))[0])
    padded = Ref(program.run("slice_backward", (half, (4,), 0, 0, 2, 1), (half, (4,), 0, 2, 4, 1))[0])
    zero = program.run("sub", (held, padded, 1))[0]
    program.run("where", (mask, shifted, Ref(zero)), dtype="int64")
    del zero


def _a_padding_row_is_beyond_the_rank(program: Program) -> None:
    ids = _ids(program, [0, 1, 2, 3])
    grad = Ref(program.leaf("grad", exact([[1], [2], [3], [4]]), [None, None]))
    mask = _in_range(program, ids, [(0, 2), (2, 4)])
    own = _local_ids(program, ids, mask, [0, 2])
    outside = Ref(program.run("bitwise_not", (mask,), dtype="bool")[0])
    column = Ref(program.run("unsqueeze", (outside, 1), dtype="bool")[0])
    rows = Ref(program.run("masked_fill", (grad, column, 0))[0])
    program.run("embedding_dense_backward", (rows, own, 2, 3, False), (rows, own, 2, -1, False))


def _a_split_is_along_another_dimension(program: Program) -> None:
    x = program.leaf("a", exact([[1, 2], [3, 4]]), [None, None])
    y = program.leaf("b", exact([[5, 6, 7, 8]]), [None, HALVES])
    both = program.run("cat", ((Ref(x), Ref(y)), 0))[0]
    program.run("split", (Ref(both), 1, 1))


def _a_product_broadcasts_two_concatenations(program: Program) -> None:
    row = program.run(
        "cat", (tuple(Ref(program.leaf(name, exact(held), [None])) for name, held in (("a", [1, 2]), ("b", [3, 4]))), 0)
    )[0]
    held = tuple(
        Ref(program.leaf(name, exact(held), [None, None])) for name, held in (("c", [[1], [2]]), ("d", [[3], [4]]))
    )
    column = program.run("cat", (held, 0))[0]
    program.run("mul", (Ref(row), Ref(column)))


def _views_of_one_replicated_tensor_differ(program: Program) -> None:
    x = Ref(program.leaf("a", exact([1, 2, 3, 4]), [None]))
    square = program.run("view", (x, (2, 2)), (x, (4, 1)))[0]
    program.run("sum", (Ref(square), (0,), False, None))


def _ranks_read_different_outputs(program: Program) -> None:
    x = Ref(program.leaf("a", exact([1, 2, 3, 4]), [None]))
    first, second = program.run("split", (x, 2, 0))
    program.run("silu", (Ref(first),), (Ref(second),))


def _where_has_a_number(program: Program) -> None:
    c = Ref(program.leaf("c", exact([1, 0]), [None]))
    x = program.leaf("a", exact([[1, 2], [3, 4]]), [(((0, 1),), ((1, 1),)), None])
    addend = program.run("sum", (Ref(x), (0,), False, None))[0]
    program.run("where", (c, Ref(addend), 2))
    program.run("where", (c, 2, Ref(addend)))
    program.run("where", (c, Ref(addend), 0))


def _a_number_is_added_to_addends(program: Program) -> None:
    x = program.leaf("a", exact([[1, 2], [3, 4]]), [(((0, 1),), ((1, 1),)), None])
    addend = Ref(program.run("sum", (Ref(x), (0,), False, None))[0])
    for name in ("add", "sub"):
        program.run(name, (addend, 2, 1))
    program.run("add", (addend, Ref(program.leaf("b", exact([1, 1]), [None])), 1))
    program.run("masked_fill", (addend, Ref(program.leaf("c", exact([1, 0]), [None])), 1))


def _rows_are_added_to_a_sharded_dimension(program: Program) -> None:
    table = Ref(program.leaf("table", exact([[1], [2], [3], [4]]), [HALVES, None]))
    ids = _ids(program, [0, 1])
    rows = Ref(program.leaf("rows", exact([[5], [6]]), [None, None]))
    program.run("index_add", (table, 0, ids, rows, 1))


def _each_rank_adds_its_rows_to_a_whole_table(program: Program) -> None:
    table = Ref(program.leaf("table", exact([[1], [2]]), [None, None]))
    ids = Ref(program.leaf("ids", exact([0, 1, 1, 0]), [HALVES], "int64"))
    rows = Ref(program.leaf("rows", exact([[5], [6], [7], [8]]), [HALVES, None]))
    added = program.run("index_add", (table, 0, ids, rows, 1))[0]
    program.run("collective.all_reduce", (Ref(added), "sum"))


PROGRAMS: list[Callable[[Program], None]] = [
    _parts_are_empty_on_one_rank,
    _ranks_sum_different_dimensions,
    _a_gathered_part_is_used,
    _one_part_is_joined_with_itself,
    _a_mask_broadcasts_along_the_features,
    _ids_are_zeroed_in_a_smaller_range,
    _a_padding_row_is_beyond_the_rank,
    _a_zero_has_addends,
    _a_split_is_along_another_dimension,
    _a_product_broadcasts_two_concatenations,
    _views_of_one_replicated_tensor_differ,
    _where_has_a_number,
    _rows_are_added_to_a_sharded_dimension,
    _each_rank_adds_its_rows_to_a_whole_table,
    _ranks_read_different_outputs,
    _a_number_is_added_to_addends,
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("write", PROGRAMS, ids=lambda one: one.__name__.strip("_"))
def test_a_program_that_could_fool_a_rule_does_not(write: Callable[[Program], None]) -> None:
    program = Program(2)
    write(program)
    lifter, terms = program.lifter(), Values(program.leaves)
    for value in range(program.count):
        found = lifter.lift((value, value))
        if not isinstance(found, Failure):
            wrong = program.wrong((value, value), found, terms)
            assert not wrong, f"value {value}: {found}: {wrong}"
