"""The laws of the normal form: each replaces a term by one with the same value (`algebra`, `movement`)."""

from __future__ import annotations

from collections.abc import Iterator

import z3
from tpinit.proofs.claims import Claim
from tpinit.proofs.step.lemmas import base, claim, rule_theorem, step, when

_NUMBER, _REAL = z3.IntSort(), z3.RealSort()
_X, _Y, _Z, _A, _B, _SUM, _TOTAL = z3.Reals("x y z a b sum total")
_I, _J, _N, _M, _START, _MORE = z3.Ints("i j n m start more")
_U, _V = z3.Function("u", _NUMBER, _REAL), z3.Function("v", _NUMBER, _REAL)
_F = z3.Function("f", _REAL, _REAL)


def _forms(*names: str) -> tuple[str, ...]:
    return tuple(f"normal form.{name}" for name in names)


@rule_theorem(
    _forms("linear", "add", "times", "coefficient", "number", "product"),
    control="a factor of a sum is taken into its first addend only",
    sources=("algebra",),
)
def sums_and_products_are_those_of_a_ring(right: bool) -> Iterator[Claim]:
    """Sums and products of reals have no order and no brackets; a factor of a sum is one of each addend; equal addends
    add their coefficients, and an addend with the coefficient 0 is none; factors of a product multiply into one in
    front.
    """
    second = _A * _B * _Y if right else _B * _Y
    yield claim("a multiple of a sum", [], _A * _X + second == _A * (_X + _B * _Y))
    yield claim("equal addends", [], _A * _X + _Y + _B * _X == (_A + _B) * _X + _Y)
    yield claim("nothing", [], 0 * _X + _Y == _Y)
    yield claim("order of a sum", [], (_X + _Y) + _Z == (_Z + _X) + _Y)
    yield claim("order of a product", [], (_X * _Y) * _Z == (_Z * _X) * _Y)
    yield claim("factors in front", [], (_A * _X) * (_B * _Y) == (_A * _B) * (_X * _Y))


@rule_theorem(_forms("recip", "power"), control="the factor stays a factor", sources=("algebra",))
def reciprocals_go_through_products(right: bool) -> Iterator[Claim]:
    """Where nothing is divided by 0: 1 / (a x) is (1 / a)(1 / x), 1 / (x y) is (1 / x)(1 / y), 1 / (1 / x) is x, and a
    power with a negative exponent is the reciprocal of the power. A reciprocal is the number whose product with x is 1.
    """
    of_x, of_y, of_a = z3.Reals("recip_x recip_y recip_a")
    given = [_X * of_x == 1, _Y * of_y == 1, _A * of_a == 1]
    factor = of_a if right else _A
    yield claim("of a multiple", given, (_A * _X) * (factor * of_x) == 1)
    yield claim("of a product", given, (_X * _Y) * (of_x * of_y) == 1)
    yield claim("of a reciprocal", given, of_x * _X == 1)
    yield claim("one only", [_X * of_x == 1, _X * _Z == 1], of_x == _Z)


@rule_theorem(
    (*_forms("_without_roots", "sqrt", "power"), "RULES.square", "RULES.pow", "JOINED.square", "JOINED.pow"),
    control="the number under the root may be negative",
    sources=("algebra", "rules", "rules_joined"),
)
def the_square_of_a_root_is_the_number(right: bool) -> Iterator[Claim]:
    """sqrt(x) sqrt(x) is x wherever sqrt(x) is a real number, x >= 0: so it is for a sum of squares, by induction."""
    root = z3.Real("root")
    is_root = z3.Implies(_X >= 0, z3.And(root >= 0, root * root == _X))
    yield claim("square", [is_root, *([_X >= 0] if right else [])], root * root == _X)
    yield base([_SUM == 0], _SUM >= 0)
    yield step([_SUM >= 0], _SUM + _Y * _Y >= 0)


@rule_theorem(
    _forms("function", "_along_cat", "moved_as", "product"),
    control="the concatenations are split at different indices",
    sources=("algebra",),
)
def elementwise_functions_go_through_movement(right: bool) -> Iterator[Claim]:
    """A function of one operand, applied to moved elements, moves its results: f at a moved index is the moved f. Of a
    concatenation it is the concatenation of f of the parts. The product of concatenations that have as many dimensions
    and are split at the same indices is the concatenation of the products.
    """
    moved = z3.Function("moved", _NUMBER, _NUMBER)
    value = z3.Function("f_of_u", _NUMBER, _REAL)
    yield claim("moved", [value(moved(_I)) == _F(_U(moved(_I)))], _F(_U(moved(_I))) == value(moved(_I)))
    yield claim(
        "concatenated",
        [_I >= 0, _N >= 0],
        _F(z3.If(_I < _N, _U(_I), _V(_I - _N))) == z3.If(_I < _N, _F(_U(_I)), _F(_V(_I - _N))),
    )
    s, t = z3.Function("s", _NUMBER, _REAL), z3.Function("t", _NUMBER, _REAL)
    other = _N if right else _M
    yield claim(
        "product",
        [_I >= 0, _N >= 0, _M >= 0],
        z3.If(_I < _N, _U(_I), _V(_I - _N)) * z3.If(other > _I, s(_I), t(_I - other))
        == z3.If(_I < _N, _U(_I) * s(_I), _V(_I - _N) * t(_I - _N)),
    )


@rule_theorem(
    _forms("_through_sum", "_permuted", "expand", "permute", "view", "slice"),
    control="one addend is not moved",
    sources=("movement",),
)
def movement_goes_into_sums(right: bool) -> Iterator[Claim]:
    """Moving a sum moves each addend by the same index function; a constant is the same at every index. A movement of a
    movement is the one by the composed index function.
    """
    moved, again = z3.Function("moved", _NUMBER, _NUMBER), z3.Function("again", _NUMBER, _NUMBER)
    total = z3.Function("of_both", _NUMBER, _REAL)
    place = moved(_I)
    second = _V(place) if right else _V(_I)
    yield claim(
        "a sum", [total(place) == _A * _U(place) + _B * _V(place)], total(place) == _A * _U(place) + _B * second
    )
    twice = z3.Function("composed", _NUMBER, _NUMBER)
    yield claim("composed", [twice(_I) == moved(again(_I))], _U(moved(again(_I))) == _U(twice(_I)))


@rule_theorem(
    _forms("view", "_view_of_expand", "_without_leading_ones", "unexpanded", "_slice_of_expand"),
    control="the last dimensions of the views have different sizes",
    sources=("movement",),
)
def views_of_broadcasts_repeat_the_same_elements(right: bool) -> Iterator[Claim]:
    """A tensor of n elements that is broadcast along leading dimensions has at the row-major number a n + j the element
    j. So every view of it that keeps the n last elements is a broadcast of the tensor, whatever the leading dimensions
    are. A leading dimension of size 1 is no other broadcast, and a slice along a broadcast dimension is a shorter
    broadcast.
    """
    first, other, gap = z3.Ints("first other gap")
    size = _N if right else _M
    given = [_N >= 1, _M >= 1, first >= 0, _I >= 0, _I < _N, other >= 0, other < size]
    yield claim("the same row", [*given, first * _N + _I == first * size + other], _U(_I) == _U(other))
    yield claim(
        "no other row",
        [*given[:5], other >= 0, other < _N, gap >= 0],
        (first + 1 + gap) * _N + _I != first * _N + other,
    )


@rule_theorem(
    _forms("slice", "_slice_of_cat", "cat", "_continued"),
    control="the second slice begins one index late",
    sources=("movement",),
)
def slices_of_slices_and_of_concatenations(right: bool) -> Iterator[Claim]:
    """A slice of a slice starts at the sum of the starts. A slice of a concatenation has at i what the part has in
    which start + i lies. Two neighbouring slices of one tensor, concatenated, are one slice.
    """
    sliced = z3.Function("sliced", _NUMBER, _REAL)
    given = [_I >= 0, _START >= 0, _MORE >= 0, _N >= 0]
    yield claim(
        "of a slice",
        [*given, sliced(_MORE + _I) == _U(_START + (_MORE + _I))],
        sliced(_MORE + _I) == _U((_START + _MORE) + _I),
    )
    at = _START + _I
    low = z3.If(_START > _N, _START, _N)  # where the second part is met
    yield claim("of the first part", [*given, at < _N], z3.If(at < _N, _U(at), _V(at - _N)) == _U(_START + _I))
    yield claim(
        "of the second part",
        [*given, at >= _N, _I - (low - _START) == _J],
        z3.And(_J >= 0, z3.If(at < _N, _U(at), _V(at - _N)) == _V((low - _N) + _J)),
    )
    begins = _START + _N if right else _START + _N + 1
    yield claim("neighbours", given, z3.If(_I < _N, _U(_START + _I), _U(begins + (_I - _N))) == _U(_START + _I))


@rule_theorem(
    (*_forms("pad", "without_gaps", "_closed"), "JOINED.add"),
    control="two of the parts overlap",
    sources=("movement", "rules_joined"),
)
def padded_parts_without_gaps_are_a_concatenation(right: bool) -> Iterator[Claim]:
    """The sum of tensors that are 0 but for parts, of which each begins where the one before ends, is their
    concatenation: by induction over parts, the sum so far is at i the concatenation below the end of the parts so far,
    and 0 from there on. A padded sum is the sum of padded addends.
    """
    position, length, joined = z3.Int("position"), z3.Int("length"), z3.Real("joined")
    begin = position if right else position - 1
    inside = z3.And(begin <= _I, begin + length > _I)
    so_far = when(position > _I, joined) == _SUM
    after = z3.If(position > _I, joined, _X)
    yield base([_I >= 0, position == 0, _SUM == 0], so_far)
    yield step(
        [_I >= 0, position >= 1, length >= 0, so_far], _SUM + when(inside, _X) == when(begin + length > _I, after)
    )
    yield claim("of a sum", [], when(inside, _A * _X + _B * _Y) == _A * when(inside, _X) + _B * when(inside, _Y))


@rule_theorem(
    _forms("reduce_sum", "_sum_of_view", "_merged_sums"),
    control="the sum of a constant is the constant",
    sources=("algebra",),
)
def sums_over_dimensions(right: bool) -> Iterator[Claim]:
    """By induction over the elements: the sum of a broadcast number is its multiple by the size; the sum over a
    concatenation is that of the sums over its parts; the sum over one dimension and then over another is the sum over
    both; and as a view keeps the row-major order, a sum over all dimensions of a group is the sum over the viewed
    group. A sum has no order.
    """
    count, row = z3.Reals("count row")
    grown = count + 1 if right else count
    yield claim("constant, base", [_SUM == 0, count == 0], count * _A == _SUM)
    yield claim("constant, step", [count * _A == _SUM], grown * _A == _SUM + _A)
    yield claim("parts, base", [_SUM == _X, _TOTAL == 0], _SUM == _X + _TOTAL)
    yield claim("parts, step", [_SUM == _X + _TOTAL], _SUM + _Y == _X + (_TOTAL + _Y))
    # `sum` is over all elements in row-major order, `total` over whole rows, `row` over the row so far.
    yield claim("rows, step", [_TOTAL + row == _SUM], _TOTAL + (row + _X) == _SUM + _X)
    yield claim("rows, next", [_TOTAL + row == _SUM, _TOTAL + row == _Z], _SUM == _Z + 0)
    yield claim("order", [_TOTAL + row == _SUM], _TOTAL + row + _Y + _X == _SUM + _X + _Y)


@rule_theorem(
    _forms("contract", "_unpermuted", "moved_as"),
    control="the factor of the second operand is lost",
    sources=("movement",),
)
def contractions_take_out_factors_and_order(right: bool) -> Iterator[Claim]:
    """A contraction is a sum of products over paired indices: its operands may change places, constant factors come out
    in front, and a permutation of an operand only renames which dimension is paired, kept or batched. By induction over
    the summed index.
    """
    own, moved = z3.Function("own", _NUMBER, _NUMBER, _REAL), z3.Function("permuted", _NUMBER, _NUMBER, _REAL)
    factor = _A * _B if right else _A
    yield base([_SUM == 0, _TOTAL == 0], factor * _TOTAL == _SUM)
    yield step(
        [factor * _TOTAL == _SUM, moved(_J, _I) == own(_I, _J)],
        _SUM + (_A * moved(_J, _I)) * (_B * _Y) == factor * (_TOTAL + _Y * own(_I, _J)),
    )
