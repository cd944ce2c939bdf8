"""Data movement: what the ranks hold is moved as the whole is, for parts and for addends (`rules_movement`)."""

from __future__ import annotations

from collections.abc import Iterator

import z3
from tpinit.proofs.claims import Claim
from tpinit.proofs.step.lemmas import base, claim, rule_theorem, step, when

_NUMBER, _REAL = z3.IntSort(), z3.RealSort()
_I, _J, _R, _START, _LOW, _HIGH = z3.Ints("i j r start low high")
_X, _Y = z3.Function("x", _NUMBER, _REAL), z3.Function("y", _NUMBER, _REAL)
_XX = z3.Function("xx", _NUMBER, _NUMBER, _REAL)
_P, _Q = z3.Function("p", _NUMBER, _NUMBER), z3.Function("q", _NUMBER, _NUMBER)

_MOVEMENT = ("rules_movement", "parts")


@rule_theorem(
    ("MOVEMENT.permute", "MOVEMENT.t", "MOVEMENT.transpose", "normal form.permute"),
    control="the pieces stay where they were",
    sources=(*_MOVEMENT, "movement"),
)
def a_permutation_permutes_the_pieces(right: bool) -> Iterator[Claim]:
    """If a rank holds x at (p(i), q(j)), its transposed tensor is the transposed x at (q(j), p(i)): the pieces of each
    dimension move with it. Shown for two dimensions; each permutation is a product of such exchanges.
    """
    transposed = z3.Function("transposed", _NUMBER, _NUMBER, _REAL)
    first, second = (_Q(_J), _P(_I)) if right else (_P(_I), _Q(_J))
    own = z3.Real("own_at_i_j")
    yield claim(
        "exchange",
        [_I >= 0, _J >= 0, own == _XX(_P(_I), _Q(_J)), transposed(first, second) == _XX(second, first)],
        own == transposed(first, second) if right else own == transposed(_P(_I), _Q(_J)),
    )


@rule_theorem(
    ("MOVEMENT.expand", "normal form.expand", "normal form.unexpanded"),
    control="the dimension that is broadcast has more than one index",
    sources=(*_MOVEMENT, "movement"),
)
def a_broadcast_repeats_what_all_ranks_hold(right: bool) -> Iterator[Claim]:
    """A new dimension, or one of size 1 that a rank holds whole, has at each index the element at 0: the rank's tensor
    is the whole broadcast, at its pieces of the other dimensions. A broadcast of a broadcast is one.
    """
    own, whole = z3.Real("own_at_j_i"), z3.Function("broadcast", _NUMBER, _NUMBER, _REAL)
    source = z3.IntVal(0) if right else _J
    given = [_I >= 0, _J >= 0, own == _XX(source, _P(_I)), whole(_J, _P(_I)) == _XX(0, _P(_I))]
    yield claim("broadcast", given, own == whole(_J, _P(_I)))


@rule_theorem(
    (
        "MOVEMENT.expand",
        "rules_joined.padded",
        "normal form.pad",
        "MOVEMENT.slice_backward",
        "MOVEMENT.select_backward",
    ),
    control="a rank adds something outside of its addend",
    sources=(*_MOVEMENT, "rules_joined", "movement"),
)
def zeros_around_addends_are_zeros_around_the_sum(right: bool) -> Iterator[Claim]:
    """Zeros around the tensor of each rank, along a dimension that all hold whole, are zeros around the whole, for
    parts; and for addends, by induction over ranks, the sum of the padded addends is the padded sum.
    """
    start, length = z3.Ints("at length")
    inside = z3.And(start <= _I, start + length > _I)
    own, total, result = z3.Reals("own total result")
    outside = z3.RealVal(0) if right else z3.Real("outside")
    yield base([start >= 0, length >= 0, total == 0, result == 0], result == when(inside, total))
    yield step(
        [start >= 0, length >= 0, result == when(inside, total)],
        result + z3.If(inside, own, outside) == when(inside, total + own),
    )


@rule_theorem(
    (
        "MOVEMENT.slice",
        "MOVEMENT.select",
        "MOVEMENT.split",
        "MOVEMENT.split_with_sizes",
        "MOVEMENT.chunk",
        "MOVEMENT.unbind",
        "normal form.slice",
    ),
    control="the pieces are not shifted to the start of the slice of the whole",
    sources=_MOVEMENT,
)
def a_slice_of_parts_is_a_part_of_a_slice(right: bool) -> Iterator[Claim]:
    """Let each rank slice its part from an index of its own on. If low is the least global index of all slices, what a
    rank has at i is the slice of the whole from low on, at p(start + i) - low: for all pieces, also where ranks slice
    different ranges of one tensor. A select is a slice of length 1 without its dimension, a split is several slices.
    """
    sliced = z3.Function("sliced", _NUMBER, _REAL)
    place = _P(_START + _I) - _LOW if right else _P(_START + _I)
    yield claim(
        "any index",
        [_I >= 0, _START >= 0, _P(_START + _I) >= _LOW, _P(_START + _I) < _HIGH, sliced(place) == _X(_LOW + place)],
        sliced(place) == _X(_P(_START + _I)),
    )


@rule_theorem(
    ("MOVEMENT.slice", "MOVEMENT.split"),
    control="a rank leaves out a part of its range",
    sources=_MOVEMENT,
)
def a_slice_of_addends_keeps_their_range(right: bool) -> Iterator[Claim]:
    """If each rank's slice holds every index of its addend in [low, high), and no other, the sliced addends make the
    sliced sum there: by induction over ranks.
    """
    held, kept = z3.Bools("held kept")
    own, total, result = z3.Reals("own total result")
    same = kept == held if right else z3.Implies(kept, held)
    yield base([total == 0, result == 0], result == total)
    yield step([result == total, same], result + when(kept, own) == total + when(held, own))


@rule_theorem(
    ("parts.concatenated", "JOINED.cat", "JOINED.stack", "normal form.cat"),
    control="the second part begins at the length that the rank holds of the first",
    sources=(*_MOVEMENT, "rules_joined"),
)
def concatenated_parts_are_parts_of_a_concatenation(right: bool) -> Iterator[Claim]:
    """If a rank joins its n indices of a whole x (of size N) with those of y, it has the concatenation of x and y at
    p(i) for i < n, else at N + q(i - n); if both are parts of one x it has x at p(i), else at q(i - n). More parts are
    joined one after another, and a stack is a concatenation along a new dimension of size 1.
    """
    own, size = z3.Ints("own size")
    both = z3.Function("both", _NUMBER, _REAL)
    has = z3.If(own > _I, _X(_P(_I)), _Y(_Q(_I - own)))
    place = z3.If(own > _I, _P(_I), (size if right else own) + _Q(_I - own))
    valid = z3.And(
        _I >= 0, own >= 0, own <= size, z3.Implies(own > _I, z3.And(_P(_I) >= 0, _P(_I) < size)), _Q(_I - own) >= 0
    )
    joined = both(place) == z3.If(place < size, _X(place), _Y(place - size))
    yield claim("of two wholes", [valid, joined], has == both(place))
    one = z3.If(own > _I, _X(_P(_I)), _X(_Q(_I - own)))
    yield claim("of one whole", [valid], one == _X(z3.If(own > _I, _P(_I), _Q(_I - own))))


@rule_theorem(("parts.concatenated",), control="the ranks concatenate addends and parts", sources=_MOVEMENT)
def concatenated_addends_make_the_concatenation(right: bool) -> Iterator[Claim]:
    """The concatenations of addends are addends of the concatenation of the sums: by induction over ranks, at each
    index.
    """
    first, second, x, y, total = z3.Reals("first second x_sum y_sum total")
    size = z3.Int("size")
    given = [_I >= 0, size >= 0]
    so_far = total == z3.If(size > _I, x, y)
    yield base([*given, x == 0, y == 0, total == 0], so_far)
    # A part that all ranks hold is no addend: its sum does not grow.
    grown = y + second if right else y
    yield step([*given, so_far], total + z3.If(size > _I, first, second) == z3.If(size > _I, x + first, grown))


@rule_theorem(
    tuple(f"MOVEMENT.{name}" for name in ("view", "_unsafe_view", "reshape", "unsqueeze", "squeeze", "_reshape_alias")),
    control="two dimensions of a group change their places",
    sources=("rules_movement", "terms"),
)
def a_view_of_a_part_is_a_part_of_the_view(right: bool) -> Iterator[Claim]:
    """A view keeps the row-major number of each element, f = i n + j for an outer group i and an inner one of n
    elements. If the local numbers of a group with m elements have the global numbers a(i) and b(j), an element of the
    rank with the local number i m + j is the whole's element a(i) n + b(j): so each group is moved by itself, and its
    pieces are those of the merged dimension (`merged_pieces_are_row_major`), for any shapes without a dimension of size
    0.
    """
    n, m, f = z3.Ints("n m f")
    viewed = z3.Function("viewed", _NUMBER, _REAL)
    a, b = _P(_I), _Q(_J)
    own = z3.Real("own_at_f")
    whole = a * n + b if right else b * n + a
    yield claim(
        "of groups",
        [_I >= 0, _J >= 0, m > _J, n >= 1, f == _I * m + _J, own == _X(a * n + b), viewed(whole) == _X(whole)],
        own == viewed(whole),
    )
