"""A vocabulary that is cut over the ranks: masks, ids, embeddings and their gradients (`rules_vocabulary`)."""

from __future__ import annotations

from collections.abc import Iterator

import z3
from tpinit.proofs.claims import Claim
from tpinit.proofs.step.lemmas import base, claim, rule_theorem, step, when

_NUMBER, _REAL = z3.IntSort(), z3.RealSort()
_ID, _LOW, _HIGH, _SIZE, _OTHER_LOW, _OTHER_HIGH, _FAR, _ROW = z3.Ints("id low high size other_low other_high far row")
_ROWS = z3.Function("row_of", _NUMBER, _REAL)
_TOTAL, _GRAD, _FACTOR = z3.Reals("total grad factor")

_SOURCE = ("rules_vocabulary",)


def _inside(low: z3.ArithRef, high: z3.ArithRef) -> z3.BoolRef:
    return z3.And(low <= _ID, high > _ID)


@rule_theorem(
    (
        *tuple(f"VOCABULARY.{name}" for name in ("ge", "lt", "bitwise_and", "logical_and")),
        "RULES.bitwise_not",
        "RULES.logical_not",
        "LATE.bitwise_and",
    ),
    control="the ranges are joined, not intersected",
    sources=(*_SOURCE, "rules", "rules_loss"),
    bound="ids lie in [-2**62, 2**62): a comparison with one bound is the range up to there",
)
def two_comparisons_are_a_range(right: bool) -> Iterator[Claim]:
    """Id >= low and id < high are the ranges [low, far) and [-far, high), and both together are the range from the
    greater low to the lesser high, also where it is empty; `not` is the opposite of each. For all ids in [-far, far).
    """
    far = [_FAR >= 1, _ID >= -_FAR, _ID < _FAR]
    yield claim("at least", far, (_ID >= _LOW) == _inside(_LOW, _FAR))
    yield claim("less", far, (_ID < _HIGH) == _inside(-_FAR, _HIGH))
    low = z3.If((_LOW > _OTHER_LOW) == right, _LOW, _OTHER_LOW)
    high = z3.If((_HIGH < _OTHER_HIGH) == right, _HIGH, _OTHER_HIGH)
    yield claim("both", far, z3.And(_inside(_LOW, _HIGH), _inside(_OTHER_LOW, _OTHER_HIGH)) == _inside(low, high))


@rule_theorem(
    ("VOCABULARY.sub", "VOCABULARY.where", "VOCABULARY.unsqueeze"),
    control="the ids are shifted by another bound than that of the range",
    sources=_SOURCE,
)
def ids_of_a_rank_are_rows_of_its_part(right: bool) -> Iterator[Claim]:
    """If an id lies in the range [low, high) of a rank, id - low is the row of the rank's part of the table that is the
    whole row of the id, and a valid one; if not, the id becomes 0, which is a valid row where the part is not empty.
    Ids that were chosen once must not be chosen again with a larger range.
    """
    own = z3.Function("own_row", _NUMBER, _REAL)
    shift = _LOW if right else _OTHER_LOW
    local = z3.If(_inside(_LOW, _HIGH), _ID - shift, 0)
    part = own(local) == _ROWS(_LOW + local)
    yield claim("valid", [_LOW < _HIGH], z3.And(local >= 0, local < _HIGH - _LOW))
    yield claim("the row", [_LOW < _HIGH, _inside(_LOW, _HIGH), part], own(local) == _ROWS(_ID))


@rule_theorem(
    ("VOCABULARY.embedding", "VOCABULARY.masked_fill", "rules_vocabulary._is_partition"),
    control="the ranges leave a row out",
    sources=_SOURCE,
)
def rows_of_a_partitioned_table_are_addends(right: bool) -> Iterator[Claim]:
    """If the ranges [low_r, low_r+1) begin at 0, continue each other and end at the size of the table, the rows that
    each rank looks up, 0 where the id is not its own, add up to the row of the whole table: by induction over ranks,
    for any number of them, the sum over the ranks so far is the row where the id lies below their end, else 0.
    """
    row, follows = z3.Real("row_of_id"), _HIGH >= _LOW
    gap = z3.IntVal(0) if right else z3.IntVal(1)
    so_far = when(_ID < _LOW, row) == _TOTAL
    yield base([_ID >= 0, _TOTAL == 0, _LOW == 0], so_far)
    yield step(
        [_ID >= 0, _LOW >= 0, follows, so_far], _TOTAL + when(_inside(_LOW + gap, _HIGH), row) == when(_ID < _HIGH, row)
    )
    yield claim("all ranks", [_ID >= 0, _ID < _SIZE, _LOW == _SIZE, so_far], row == _TOTAL)


@rule_theorem(
    ("VOCABULARY.masked_fill", "VOCABULARY.mul", "RULES.masked_fill"),
    control="rows of other ids are filled with 1",
    sources=(*_SOURCE, "rules"),
)
def rows_are_scaled_before_they_are_filled(right: bool) -> Iterator[Claim]:
    """A factor that all ranks hold can be multiplied before the rows of other ids are filled with 0: what those rows
    were does not count. Filling with 0 is linear, so it works on addends.
    """
    own, row, other = z3.Reals("own row anything")
    filled = z3.RealVal(0) if right else z3.RealVal(1)
    held = _inside(_LOW, _HIGH)
    yield claim(
        "scaled",
        [own == z3.If(held, row, other)],
        z3.If(held, _FACTOR * own, filled) == _FACTOR * z3.If(held, row, z3.RealVal(0)),
    )
    yield claim("sum", [], when(held, own + row) == when(held, own) + when(held, row))


@rule_theorem(
    ("VOCABULARY.embedding_dense_backward", "labels.embedding_dense_backward"),
    control="the gradient of ids of other ranks is not filled with 0",
    sources=(*_SOURCE, "specs"),
)
def the_gradient_of_a_part_is_the_part_of_the_gradient(right: bool) -> Iterator[Claim]:
    """The gradient of a row adds up the gradients of the tokens with its id, but for the padding row. A rank that adds
    those of its own ids, with 0 for each other token, which it gives the id 0, has for its row v - low the gradient of
    the row v: by induction over tokens. Its padding row p is the whole's row low + p, and p is less than its number of
    rows.
    """
    own, whole = z3.Reals("own whole")
    padding = z3.Int("padding")
    local = z3.If(_inside(_LOW, _HIGH), _ID - _LOW, 0)
    grad = when(_inside(_LOW, _HIGH), _GRAD) if right else _GRAD
    given = [_LOW <= _ROW, _ROW < _HIGH, _LOW >= 0, padding >= -1, padding < _HIGH - _LOW]
    counts = z3.And(local == _ROW - _LOW, local != padding)
    of_whole = z3.And(_ID == _ROW, z3.Or(padding == -1, padding + _LOW != _ID))
    yield base([*given, own == 0, whole == 0], own == whole)
    yield step([*given, own == whole], own + when(counts, grad) == whole + when(of_whole, _GRAD))


@rule_theorem(
    ("VOCABULARY.embedding_dense_backward",),
    control="the rank's padding row is one that it does not have",
    sources=_SOURCE,
)
def a_padding_row_belongs_to_one_rank(right: bool) -> Iterator[Claim]:
    """If the row p >= 0 of a rank's part is a row that it has, low + p lies in its range, and so in that of no other
    rank of a partition: the other ranks skip no row.
    """
    padding = z3.Int("padding")
    has = padding < _HIGH - _LOW if right else padding >= 0
    yield claim(
        "in its range",
        [padding >= 0, _LOW >= 0, has, _HIGH <= _OTHER_LOW, _ROW >= _OTHER_LOW],
        z3.And(_LOW + padding < _HIGH, _LOW + padding != _ROW),
    )


@rule_theorem(
    ("labels.embedding", "labels.embedding_dense_backward"),
    control="an id counts twice",
    sources=("specs",),
)
def an_embedding_is_a_product_with_its_ids(right: bool) -> Iterator[Claim]:
    """Looking up rows is the product of the table with the matrix that has 1 at (token, id): a contraction, linear in
    the table, so that tables that are addends give addends; its gradient is the product of that matrix, transposed,
    with the gradient, a sum over tokens. Over the vocabulary, by induction: the sum over rows below v is the row of the
    id if it is less than v.
    """
    one = z3.RealVal(1) if right else z3.RealVal(2)
    so_far = when(_ID < _ROW, _ROWS(_ID)) == _TOTAL
    yield base([_ID >= 0, _ROW == 0, _TOTAL == 0], so_far)
    yield step(
        [_ID >= 0, _ROW >= 0, so_far], _TOTAL + when(_ID == _ROW, one) * _ROWS(_ROW) == when(_ID < _ROW + 1, _ROWS(_ID))
    )
