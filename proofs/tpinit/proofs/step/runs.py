"""The index arithmetic of pieces: runs (offset, length), read one after another, are a function of the local index.

at(i) is the global index of the local index i. A list of runs is a first run and the rest, so a statement about lists
of any number of runs is proven for one more run in front or at the end.
"""

from __future__ import annotations

from collections.abc import Iterator

import z3
from tpinit.proofs.claims import Claim
from tpinit.proofs.step.lemmas import base, claim, rule_theorem, step

_I, _J, _START, _LENGTH, _OFFSET, _RUN, _POSITION = z3.Ints("i j start length offset run position")
_NUMBER = z3.IntSort()
_REST = z3.Function("rest", _NUMBER, _NUMBER)

_PIECES = ("pieces",)


def _at(offset: z3.ArithRef, length: z3.ArithRef, index: z3.ArithRef) -> z3.ArithRef:
    """Return the global index of a local one in a list that begins with this run."""
    return z3.If(index < length, offset + index, _REST(index - length))


@rule_theorem(
    ("pieces.normal", "layouts.normal_axis"),
    control="runs are merged that leave one index out",
    sources=_PIECES,
)
def merging_runs_changes_no_index(right: bool) -> Iterator[Claim]:
    """Two runs, of which the second begins where the first ends, are one run; a run of length 0 can be left out.
    Neither changes at(i) for any i, whatever runs follow: by induction over the runs, normal pieces have the same
    indices.
    """
    second, more = z3.Ints("second more")
    begins = _OFFSET + _RUN if right else _OFFSET + _RUN + 1
    given = [_I >= 0, _RUN >= 1, more >= 1, second == begins]
    apart = z3.If(_I < _RUN, _OFFSET + _I, z3.If(more > _I - _RUN, second + _I - _RUN, _REST(_I - _RUN - more)))
    same_rest = _REST(_I - (_RUN + more)) == _REST(_I - _RUN - more)
    yield claim("neighbours", [*given, same_rest], apart == _at(_OFFSET, _RUN + more, _I))
    yield claim(
        "an empty run", [_I >= 0, _RUN == 0, _REST(_I - _RUN) == _REST(_I)], _at(_OFFSET, _RUN, _I) == _REST(_I)
    )


@rule_theorem(("pieces.shifted",), control="the length is shifted too", sources=_PIECES)
def shifted_runs_have_shifted_indices(right: bool) -> Iterator[Claim]:
    """Adding a number to the offset of each run adds it to at(i): shown for the first run, and by induction for the
    rest.
    """
    by = z3.Int("by")
    moved = z3.Function("moved_rest", _NUMBER, _NUMBER)
    length = _RUN if right else _RUN + by
    first = z3.If(length > _I, _OFFSET + by + _I, moved(_I - length))
    yield claim(
        "one more run",
        [_I >= 0, _RUN >= 0, moved(_I - length) == _REST(_I - length) + by],
        first == _at(_OFFSET, _RUN, _I) + by,
    )


def _larger(one: z3.ArithRef, other: z3.ArithRef) -> z3.ArithRef:
    return z3.If(one > other, one, other)


def _smaller(one: z3.ArithRef, other: z3.ArithRef) -> z3.ArithRef:
    return z3.If(one < other, one, other)


@rule_theorem(
    ("pieces.taken", "MOVEMENT.slice"), control="the offset of the run is not moved by its position", sources=_PIECES
)
def taken_runs_have_the_indices_from_start_on(right: bool) -> Iterator[Claim]:
    """The pieces of the local indices [start, start + length) have at the index i what the pieces have at start + i. By
    induction over runs: `taken` indices come from the runs before, their number is that of the local indices of these
    runs that lie in the range, and the next run adds exactly those of its own, in order.
    """
    end = _START + _LENGTH
    given = [_START >= 0, _LENGTH >= 0, _POSITION >= 0, _RUN >= 0]
    low, high = _larger(_START, _POSITION), _smaller(end, _POSITION + _RUN)
    taken = _larger(0, _smaller(end, _POSITION) - _START)
    after = _larger(0, _smaller(end, _POSITION + _RUN) - _START)
    offset = _OFFSET + low - _POSITION if right else _OFFSET + low
    yield base([*given, _POSITION == 0], taken == 0)
    yield claim("how many", given, after == taken + _larger(0, high - low))
    yield claim(
        "which",
        [*given, low < high, taken <= _I, after > _I],
        offset + (_I - taken) == _OFFSET + (_START + _I - _POSITION),
    )
    yield claim(
        "of this run",
        [*given, taken <= _I, after > _I],
        z3.And(_POSITION <= _START + _I, _START + _I < _POSITION + _RUN),
    )


@rule_theorem(
    ("pieces.joined", "pieces.length_of"),
    control="the second part begins one index early",
    sources=_PIECES,
)
def joined_pieces_are_the_parts_one_after_another(right: bool) -> Iterator[Claim]:
    """The runs of one part and then those of another have at i what the first has at i, if i is less than its length,
    else what the second has at i minus this length. By induction over the runs of the first part; lengths add up.
    """
    first, second, both = (z3.Function(name, _NUMBER, _NUMBER) for name in ("first", "second", "both"))
    own = z3.Int("own")
    shift = own if right else own - 1
    inner = _I - _RUN
    yield base([_I >= 0, own == 0, both(_I) == second(_I)], both(_I) == z3.If(own > _I, first(_I), second(_I - own)))
    yield step(
        [_I >= 0, _RUN >= 0, own >= 0, both(inner) == z3.If(inner < shift, first(inner), second(inner - shift))],
        z3.If(_I < _RUN, _OFFSET + _I, both(inner))
        == z3.If(_RUN + own > _I, z3.If(_I < _RUN, _OFFSET + _I, first(inner)), second(_I - (_RUN + own))),
    )


@rule_theorem(
    ("pieces.merged", "MOVEMENT.view"),
    control="the offset of the inner run is left out",
    sources=("pieces", "rules_movement", "parts"),
)
def merged_pieces_are_row_major(right: bool) -> Iterator[Claim]:
    """Merging an outer dimension with an inner one of size n, of which a rank holds m indices: the local index i m + j
    has the global index a(i) n + b(j). For each outer index in order, each inner run at position p with offset o gives
    the run a(i) n + o, which holds exactly the local indices from i m + p on. An inner dimension that is whole (m = n,
    b(j) = j) keeps a run of outer indices one run. For all sizes; more than two dimensions are merged one after
    another.
    """
    outer, size, own, place, inner = z3.Ints("outer_index size own place inner_offset")
    t = z3.Int("t")
    b = inner + t  # b(place + t), of the inner run
    offset = outer * size + inner if right else outer * size
    yield claim(
        "an inner run",
        [_I >= 0, own >= 0, t >= 0, t < _RUN, place >= 0, place + t == _J],
        z3.And(offset + t == outer * size + b, (_I * own + place) + t == _I * own + _J),
    )
    # A run of outer indices (offset, length) from the local index `position` on, and an inner dimension that is whole.
    yield claim(
        "inner is whole",
        [_I >= _POSITION, _I < _POSITION + _RUN, _J >= 0, size > _J],
        _OFFSET * size + (_I * size + _J - _POSITION * size) == (_OFFSET + _I - _POSITION) * size + _J,
    )


@rule_theorem(
    ("pieces.merged", "parts._split", "MOVEMENT.view", "normal form.view"),
    control="the inner index may be as large as the size",
    sources=("pieces", "rules_movement", "parts"),
)
def a_merged_index_has_one_row_and_one_column(right: bool) -> Iterator[Claim]:
    """An index g = i n + j with 0 <= j < n belongs to one pair (i, j) only, and each g >= 0 to one: so a dimension that
    is split and merged again is the same, and a view keeps every element. `_split` is sound because it accepts a split
    only if merging it gives the pieces back.
    """
    size, gap, other = z3.Ints("size gap other")
    top = size if right else size + 1
    yield claim(
        "one pair",
        [size >= 1, gap >= 0, _J >= 0, top > _J, other >= 0, other < top],
        _I * size + _J != (_I + 1 + gap) * size + other,
    )
    quotient, rest = z3.Ints("quotient rest")
    yield claim(
        "goes on",
        [size >= 1, rest >= 0, rest < size, quotient * size + rest == _J],
        z3.Or(
            z3.And(rest + 1 < size, quotient * size + (rest + 1) == _J + 1),
            z3.And(rest + 1 == size, (quotient + 1) * size == _J + 1),
        ),
    )


@rule_theorem(
    ("pieces.covers_once", "layouts.uniform"),
    control="a run may begin behind the end of the one before",
    sources=("pieces", "layouts"),
)
def sorted_runs_that_continue_each_other_cover_once(right: bool) -> Iterator[Claim]:
    """If sorted runs begin at 0, each begins where the one before ends, and the last ends at the size, each index below
    the size is in exactly one run: by induction over runs, the indices below the end of the runs so far are in one
    each, and those from it on in none.
    """
    held, index = z3.Ints("held index")
    inside = z3.If(z3.And(index >= _OFFSET, index < _OFFSET + _RUN), 1, 0)
    follows = _OFFSET == _POSITION if right else _OFFSET >= _POSITION
    so_far = held == z3.If(index < _POSITION, 1, 0)
    yield base([index >= 0, _POSITION == 0, held == 0], so_far)
    yield step(
        [index >= 0, _RUN >= 0, _POSITION >= 0, follows, so_far], held + inside == z3.If(index < _OFFSET + _RUN, 1, 0)
    )
