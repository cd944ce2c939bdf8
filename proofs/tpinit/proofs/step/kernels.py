"""Operations by class: which operands each is linear in, and the rules that join several (`specs`, `rules`,
`rules_joined`).
"""

from __future__ import annotations

from collections.abc import Iterator

import z3
from tpinit.proofs.claims import Claim
from tpinit.proofs.step.lemmas import base, claim, rule_theorem, step

_NUMBER, _REAL = z3.IntSort(), z3.RealSort()
_X, _Y, _Z, _U, _V, _C, _W, _SUM, _TOTAL = z3.Reals("x y z u v c w sum total")
_I, _J, _R = z3.Ints("i j r")


@rule_theorem(
    tuple(
        f"linear.{name}" for name in ("add", "sub", "neg", "mul", "div", "lerp", "addcmul", "addcdiv", "where", "rsub")
    ),
    control="a product is linear in both factors together",
    sources=("specs", "operations_elementwise"),
)
def arithmetic_is_linear_in_these_operands(right: bool) -> Iterator[Claim]:
    """X + c y and x - c y are linear in x and y together, -x in x, x y in x (and in y), x / y in x, lerp(x, y, w) = x +
    w (y - x) in x and y together, x + c y z in x and y together (and in x and z), x + c y / z in x and y together, and
    a choice by a condition in both values together: each of a sum of operands is the sum of each, and takes out a
    factor.
    """
    yield claim("add", [], (_X + _W * _U) + _C * (_Y + _W * _V) == (_X + _C * _Y) + _W * (_U + _C * _V))
    yield claim("neg", [], -(_X + _W * _U) == -_X + _W * -_U)
    yield claim("mul", [], (_X + _W * _U) * _Y == _X * _Y + _W * (_U * _Y))
    if not right:
        yield claim("mul of both", [], (_X + _U) * (_Y + _V) == _X * _Y + _U * _V)
    recip = z3.Real("recip_y")
    yield claim("div", [_Y * recip == 1], (_X + _W * _U) * recip == _X * recip + _W * (_U * recip))
    w, k = z3.Reals("weight k")
    lerp = (_X + k * _U) + w * ((_Y + k * _V) - (_X + k * _U))
    yield claim("lerp", [], lerp == (_X + w * (_Y - _X)) + k * (_U + w * (_V - _U)))
    yield claim("addcmul", [], (_X + k * _U) + _C * (_Y + k * _V) * _Z == (_X + _C * _Y * _Z) + k * (_U + _C * _V * _Z))
    yield claim(
        "addcdiv",
        [_Z * recip == 1],
        (_X + k * _U) + _C * (_Y + k * _V) * recip == (_X + _C * _Y * recip) + k * (_U + _C * _V * recip),
    )
    b = z3.Bool("condition")
    yield claim("where", [], z3.If(b, _X + k * _U, _Y + k * _V) == z3.If(b, _X, _Y) + k * z3.If(b, _U, _V))


@rule_theorem(
    tuple(
        f"linear.{name}_backward"
        for name in (
            ["silu", "gelu", "tanh", "sigmoid", "threshold", "softplus", "elu", "leaky_relu", "mish", "hardtanh"]
        )
    ),
    control="the gradient is a function of the gradient and the input that is not a product",
    sources=("specs",),
    bound="that torch's kernel multiplies the gradient by a function of its input is taken from torch",
)
def elementwise_gradients_are_linear_in_the_gradient(right: bool) -> Iterator[Claim]:
    """The gradient of an elementwise function is the gradient of its result times a function of its input: linear in
    the gradient, for every such function.
    """
    slope = z3.Function("slope", _REAL, _REAL)
    any_function = z3.Function("g", _REAL, _REAL, _REAL)

    def of(grad: z3.ArithRef) -> z3.ArithRef:
        return grad * slope(_Y) if right else any_function(grad, _Y)

    yield claim("linear", [], of(_X + _W * _U) == of(_X) + _W * of(_U))


@rule_theorem(
    (
        *(f"RULES.{name}" for name in ("_to_copy", "copy", "new_zeros", "new_ones")),
        *("linear._to_copy", "JOINED._to_copy", "lift._same_values"),
    ),
    control="the copy is of an integer dtype",
    sources=("specs", "rules", "rules_joined", "lift", "calls"),
    bound="dtypes are those of real numbers: a copy into integers or booleans rounds, and is not this rule",
)
def copies_of_reals_are_the_identity(right: bool) -> Iterator[Claim]:
    """A copy, and a conversion between dtypes of real numbers, gives the number itself, so it is linear, keeps parts
    and addends, and what one rank copies another need not. A new tensor of one number is the same on all ranks.
    """

    def of(value: z3.ArithRef) -> z3.ArithRef:
        return value if right else z3.ToReal(z3.ToInt(value))

    yield claim("identity", [], of(_X) == _X)
    yield claim("addends", [], of(_X + _U) == of(_X) + of(_U))


@rule_theorem(
    ("elementwise", "lift.Lifter.replicated", "layouts.whole_index"),
    control="the ranks call it with different arguments",
    sources=("specs", "lift"),
    bound="that the operation draws no random numbers and reads nothing but its arguments is a premise",
)
def equal_arguments_give_equal_results(right: bool) -> Iterator[Claim]:
    """An operation that is a function of its arguments gives equal results on ranks with equal arguments; one of
    elements gives at an index a function of the elements there, so that it keeps parts.
    """
    f = z3.Function("f", _REAL, _NUMBER, _REAL)
    first, second = z3.Ints("argument_of_a_rank argument_of_another")
    yield claim("equal", [_X == _Y, *([first == second] if right else [])], f(_X, first) == f(_Y, second))


@rule_theorem(
    ("labels.mm", "labels.bmm", "RULES.addmm", "RULES.baddbmm"),
    control="the addend is multiplied by the factor of the product",
    sources=("rules", "specs", "operations_movement"),
)
def a_product_with_an_addend_is_a_sum(right: bool) -> Iterator[Claim]:
    """Addmm is beta times the addend plus alpha times the product: it is lifted as the product by its labels, and the
    sum by its own. An element of a product is the sum over k of x(i, k) y(k, j): by induction a factor comes out.
    """
    alpha, beta, base_of, product = z3.Reals("alpha beta addend product")
    factor = beta if right else alpha
    yield claim("the sum", [beta * base_of + alpha * product == _SUM], factor * base_of + alpha * product == _SUM)
    yield base([_SUM == 0, product == 0], alpha * product == _SUM)
    yield step([alpha * product == _SUM], _SUM + alpha * (_X * _Y) == alpha * (product + _X * _Y))


@rule_theorem(
    ("labels.sum", "labels.mean", "labels.cumsum", "JOINED.sum"),
    control="a running sum starts anew on each rank",
    sources=("specs", "rules_joined"),
)
def running_sums_need_the_whole_dimension(right: bool) -> Iterator[Claim]:
    """The running sum at an index is the sum of all elements up to it: on a rank that holds the dimension whole it is
    that of the whole, by induction over the dimension, and linear. The sum of joined numbers is the sum of the claims
    about them.
    """
    own, offset = z3.Reals("own before_the_rank")
    whole = [offset == 0] if right else []
    yield base([*whole, own == _X, offset + _X == _TOTAL], own == _TOTAL)
    yield step([*whole, own == _TOTAL], own + _X == _TOTAL + _X)


@rule_theorem(
    ("RULES.linalg_vector_norm", "layouts.Root", "rules._vector_norm"),
    control="a tensor that all ranks hold is counted on each",
    sources=("rules", "layouts"),
)
def the_norm_counts_each_element_once(right: bool) -> Iterator[Claim]:
    """The square of the norm of a cut tensor is the sum over ranks of the squares of their parts' norms, by induction
    over ranks; the square of what all ranks hold counts once. Only the squares are addends: `Root` has no other rule.
    """
    count, replicated, own, root = z3.Reals("count replicated own root")
    total = _SUM + replicated if right else _SUM + count * replicated
    yield base([_SUM == 0, _TOTAL == 0], _SUM == _TOTAL)
    yield step([_SUM == _TOTAL, own >= 0, root >= 0, root * root == own], _SUM + root * root == _TOTAL + own)
    yield claim("once", [_SUM == _TOTAL, count >= 2, replicated >= 0], total == _TOTAL + replicated)


@rule_theorem(
    tuple(f"JOINED.{name}" for name in ("cat", "stack", "split", "split_with_sizes", "unbind", "select")),
    control="a part is taken from one index later on",
    sources=("rules_joined",),
)
def joined_parts_are_found_again(right: bool) -> Iterator[Claim]:
    """If parts are joined along a dimension, the slice from the sum of the lengths before a part on, as long as the
    part, is this part: by induction over the parts before it.
    """
    part, rest, joined = (z3.Function(name, _NUMBER, _REAL) for name in ("part", "rest", "joined"))
    before, length, own = z3.Ints("before length own")
    at = before + _I if right else before + _I + 1
    yield base(
        [_I >= 0, length > _I, before == 0, joined(at) == z3.If(at < length, part(at), rest(at - length))],
        joined(at) == part(_I),
    )
    # One more part of length `own` in front.
    shifted = own + at
    yield step(
        [
            _I >= 0,
            length > _I,
            before >= 0,
            own >= 0,
            rest(at) == part(_I),
            joined(shifted) == z3.If(shifted < own, part(shifted), rest(shifted - own)),
        ],
        joined(own + before + _I) == part(_I),
    )


_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"


@rule_theorem(
    (f"labels.{_ATTENTION}", f"labels.{_ATTENTION}_backward", f"RULES.{_ATTENTION}", f"RULES.{_ATTENTION}_backward"),
    control="a rank has query heads of a key-value head that it lacks",
    sources=("specs", "rules"),
    bound="that the kernel works on each batch element and head by itself, and that its gradient is linear in the "
    "gradient of its result, is taken from torch",
)
def attention_works_on_each_head(right: bool) -> Iterator[Claim]:
    """Attention is a function of the elements of one batch element and one head: as every such function it keeps parts
    of both. If g query heads share a key-value head, query head i reads head i div g: a rank that has the key-value
    heads [o, o + n) and the query heads [g o, g (o + n)) has at its query head i the key-value head i div g of its own,
    for all g, o and n.
    """
    group, offset, heads, rest = z3.Ints("group offset heads rest")
    extra = z3.IntVal(0) if right else z3.IntVal(1)
    # Local query head i = g j + rest of the key-value head j; global query head g o + i.
    local = group * _J + rest
    given = [group >= 1, offset >= 0, heads >= 1, _J >= 0, heads > _J, rest >= 0, rest < group + extra]
    yield claim(
        "the head",
        [*given, group * offset + local == _I],
        z3.And(group * (offset + _J) <= _I, group * (offset + _J) + group > _I),
    )
    yield claim("on the rank", given, z3.And(offset + _J >= offset, offset + _J < offset + heads))


@rule_theorem(
    (
        "labels.native_layer_norm",
        "labels.native_layer_norm_backward",
        "softmax._softmax",
        "softmax._log_softmax",
        "spec.mixed label",
    ),
    control="a rank has only a part of a dimension that is mixed",
    sources=("specs", "labels"),
    bound="that the gradients are linear in the gradient of the result is taken from torch",
)
def rows_that_are_whole_are_mixed_as_in_the_whole(right: bool) -> Iterator[Claim]:
    """A normalization or softmax is a function of whole rows, whatever it is. If every rank holds the rows whole, at
    the index of a row that it has it computes the function of the whole's row.
    """
    row, mixed = z3.Function("row", _NUMBER, _NUMBER), z3.Function("mixed", _NUMBER, _REAL)
    own, whole = z3.Ints("row_of_rank row_of_whole")
    same = [own == row(_I)] if right else []
    yield claim("a row", [whole == row(_I), *same], mixed(own) == mixed(whole))


@rule_theorem(
    ("lift.Lifter._leaf",),
    control="the shard of the rank is another one than the claim says",
    sources=("lift", "layouts"),
    bound="that the shards are those of the claim is a premise, checked where the model is sharded",
)
def a_leaf_is_what_its_claim_says(right: bool) -> Iterator[Claim]:
    """If each rank's shard of a parameter is the whole at the claimed indices, and every other leaf is equal on all
    ranks, the claims about leaves hold, and with the rules every claim that follows: by induction over the operations.
    """
    whole, pieces = z3.Function("whole", _NUMBER, _REAL), z3.Function("claimed", _NUMBER, _NUMBER, _NUMBER)
    own = z3.Real("own_at_i")
    place = pieces(_R, _I if right else _J)
    yield claim("a shard", [own == whole(place)], own == whole(pieces(_R, _I)))
