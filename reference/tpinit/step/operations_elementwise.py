"""The meaning of elementwise operations, fills and reductions."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from tpinit.step.calls import COPIES, FUNCTIONS, Operation, axes, constant, converts, is_real, number_of
from tpinit.step.terms import Term

if TYPE_CHECKING:
    from tpinit.step.meaning import Meaning

__all__ = ["ARITHMETIC", "ELEMENTWISE", "FILLS", "function"]

Rule = Callable[["Meaning", Operation], "Term | None"]


# --- the ring ------------------------------------------------------------------------------------------------


def _add(sign: int) -> Rule:
    def rule(of: Meaning, call: Operation) -> Term | None:
        one, other = of.operand(call.args[0]), of.operand(call.args[1])
        alpha = number_of(call.args[2]) if len(call.args) > 2 else Fraction(1)
        if one is None or other is None or alpha is None:
            return None
        return of.add(one, other, sign * alpha)

    return rule


def _rsub(of: Meaning, call: Operation) -> Term | None:
    one, other = of.operand(call.args[0]), of.operand(call.args[1])
    alpha = number_of(call.args[2])
    return None if one is None or other is None or alpha is None else of.add(other, one, -alpha)


def _mul(of: Meaning, call: Operation) -> Term | None:
    one, other = of.operand(call.args[0]), of.operand(call.args[1])
    return None if one is None or other is None else of.product([one, other])


def _div(of: Meaning, call: Operation) -> Term | None:
    one, other = of.operand(call.args[0]), of.operand(call.args[1])
    if one is None or other is None or len(call.args) > 2 or not is_real(call.outputs[0].dtype):
        return None
    return of.product([one, of.recip(other)])


def _pow(of: Meaning, call: Operation) -> Term | None:
    exponent = number_of(call.args[1])
    return of.power(call.args[0], exponent) if exponent is not None and isinstance(call.args[0], Term) else None


def _lerp(of: Meaning, call: Operation) -> Term | None:
    start, end, weight = call.args
    factor = of.operand(weight)
    if factor is None:
        return None
    return of.add(start, of.product([factor, of.add(end, start, Fraction(-1))]))


def _addcmul(invert: bool) -> Rule:
    def rule(of: Meaning, call: Operation) -> Term | None:
        base, one, other, value = call.args
        number = number_of(value)
        if number is None:
            return None
        return of.add(base, of.product([one, of.recip(other) if invert else other]), number)

    return rule


def function(of: Meaning, call: Operation) -> Term | None:
    """Every argument that is a tensor or a number is an operand; the rest are constants."""
    operands, rest = [], []
    for arg in call.args:
        if isinstance(arg, Term):
            operands.append(arg)
        elif isinstance(arg, tuple):
            return None
        else:
            number = None if isinstance(arg, bool) else number_of(arg)
            rest.append(constant(arg) if number is None else number)
    if not operands:
        return None
    places = tuple(isinstance(arg, Term) for arg in call.args)
    if call.name == "bitwise_not":
        rest.append(call.read[0])
    return of.function(call.name, operands, (places, *rest))


def _where(of: Meaning, call: Operation) -> Term | None:
    condition, one, other = (of.operand(arg) for arg in call.args)
    if condition is None or one is None or other is None:
        return None
    return of.function("where", [condition, one, other])


def _masked_fill(of: Meaning, call: Operation) -> Term | None:
    value = of.operand(call.args[2])
    if value is None:
        return function(of, call)
    return of.expand(of.function("where", [call.args[1], value, call.args[0]]), call.outputs[0].shape)


def _to_copy(of: Meaning, call: Operation) -> Term | None:
    source, target = call.read[0], call.outputs[0].dtype
    return call.args[0] if converts(source, target) else of.function(f"{source} to {target}", [call.args[0]])


def _same(of: Meaning, call: Operation) -> Term | None:
    return call.args[0] if isinstance(call.args[0], Term) else None


def _copy(of: Meaning, call: Operation) -> Term | None:
    term = call.args[1]
    if not converts(call.read[-1], call.outputs[0].dtype):
        term = of.function(f"{call.read[-1]} to {call.outputs[0].dtype}", [term])
    return of.expand(term, call.outputs[0].shape)


def _filled(number: int) -> Rule:
    def rule(of: Meaning, call: Operation) -> Term | None:
        return of.number(Fraction(number), call.outputs[0].shape)

    return rule


def _full(place: int) -> Rule:
    def rule(of: Meaning, call: Operation) -> Term | None:
        number = number_of(call.args[place])
        return None if number is None else of.number(number, call.outputs[0].shape)

    return rule


# --- reductions ----------------------------------------------------------------------------------------------


def _sum(of: Meaning, call: Operation) -> Term | None:
    term = call.args[0]
    if not converts(call.read[0], call.outputs[0].dtype):
        return None
    dims = axes(call.args[1] if len(call.args) > 2 else None, len(term.shape))
    return of.view(of.reduce_sum(term, dims), call.outputs[0].shape)


def _mean(of: Meaning, call: Operation) -> Term | None:
    term = call.args[0]
    dims = axes(call.args[1] if len(call.args) > 2 else None, len(term.shape))
    count = 1
    for dim in dims:
        count *= term.shape[dim]
    return of.times(Fraction(1, count), of.view(of.reduce_sum(term, dims), call.outputs[0].shape)) if count else None


def _vector_norm(of: Meaning, call: Operation) -> Term | None:
    term, order, dims = call.args[:3]
    if number_of(order) != 2:
        return None
    return of.view(of.sqrt(of.reduce_sum(of.product([term, term]), axes(dims, len(term.shape)))), call.outputs[0].shape)


_POINTWISE = (
    *FUNCTIONS,
    "floor",
    "ceil",
    "hardtanh",
    "silu_backward",
    "gelu_backward",
    "tanh_backward",
    "sigmoid_backward",
    "threshold_backward",
    "remainder",
    "floor_divide",
    "round",
    "trunc",
    "atan2",
    "softplus_backward",
)

ARITHMETIC = frozenset(("add", "sub", "rsub", "mul", "neg", "pow", "square", "lerp", "addcmul", "addcdiv"))
"""Operations that are those of numbers where the dtype is exact, and else opaque elementwise functions."""

FILLS = {"full": 1, "full_like": 1, "new_full": 2, "scalar_tensor": 0, "fill": 1}
"""Where a number to fill with stands among the arguments."""

ELEMENTWISE: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE, function),
    "add": _add(1),
    "sub": _add(-1),
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "neg": lambda of, call: of.times(Fraction(-1), call.args[0]),
    "pow": _pow,
    "square": lambda of, call: of.product([call.args[0]] * 2),
    "sqrt": lambda of, call: of.sqrt(call.args[0]),
    "rsqrt": lambda of, call: of.recip(of.sqrt(call.args[0])),
    "reciprocal": lambda of, call: of.recip(call.args[0]),
    "lerp": _lerp,
    "addcmul": _addcmul(invert=False),
    "addcdiv": _addcmul(invert=True),
    "where": _where,
    "masked_fill": _masked_fill,
    "_to_copy": _to_copy,
    **dict.fromkeys(COPIES, _same),
    "copy": _copy,
    **dict.fromkeys(("zeros", "zeros_like", "new_zeros", "zero"), _filled(0)),
    **dict.fromkeys(("ones", "ones_like", "new_ones"), _filled(1)),
    "full": _full(1),
    "full_like": _full(1),
    "new_full": _full(2),
    "scalar_tensor": _full(0),
    "fill": _full(1),
    "sum": _sum,
    "mean": _mean,
    "linalg_vector_norm": _vector_norm,
}
