"""Sums over ranks: what makes the addends of the ranks a whole sum (`layouts`, `labels`)."""

from __future__ import annotations

from collections.abc import Iterator

import z3
from tpinit.proofs.claims import Claim
from tpinit.proofs.step.lemmas import base, claim, rule_theorem, step, when

_K, _P = z3.Ints("k p")
_X_K, _X_P, _COUNT, _SUM, _MORE, _TOTAL, _RANKS = z3.Reals("x_k x_p count sum more total ranks")

_LABELS = ("layouts", "labels", "specs")


@rule_theorem(
    ("layouts.sums_once", "spec.reduced label cut"),
    control="an index that is held twice is counted once",
    sources=_LABELS,
)
def a_held_index_adds_its_element(right: bool) -> Iterator[Claim]:
    """Let count(j) be how often the ranks hold index j. If one more index p is held, the sum over all j of count(j)
    x(j) grows by x(p): by induction over j, for any size and any p, also one that is held already.
    """
    more = _COUNT + z3.If(_K == _P, z3.RealVal(1), z3.RealVal(0))
    if not right:
        more = z3.If(_K == _P, z3.RealVal(1), _COUNT)
    same = z3.Implies(_K == _P, _X_K == _X_P)
    yield base([_P >= 0, _SUM == 0, _MORE == 0], _SUM + when(_P < 0, _X_P) == _MORE)
    yield step(
        [_K >= 0, _P >= 0, same, _COUNT >= 0, _SUM + when(_P < _K, _X_P) == _MORE],
        _MORE + more * _X_K == _SUM + _COUNT * _X_K + when(_P < _K + 1, _X_P),
    )


@rule_theorem(
    ("layouts.sums_once", "layouts.is_partition", "spec.reduced label cut"),
    control="an index is held by no rank",
    sources=_LABELS,
)
def a_sum_in_which_each_index_is_held_once_is_the_whole_sum(right: bool) -> Iterator[Claim]:
    """Where each reduced index is held exactly once, counted over all ranks, the sums of the ranks make the whole sum:
    by the theorem before, over all held indices one after another, they make the sum of count(j) x(j), and count is 1.
    By induction over j, over the indices of a rank, and over the ranks, each for any number.
    """
    own, held = z3.Reals("own held")
    once = _COUNT == 1 if right else z3.And(_COUNT >= 0, _COUNT <= 1)
    yield claim("base over j", [_SUM == 0, _TOTAL == 0], _SUM == _TOTAL)
    yield claim("step over j", [_SUM == _TOTAL, once], _SUM + _COUNT * _X_K == _TOTAL + _X_K)
    # `held` is the sum over all indices held so far; `own` that of this rank's, `total` that of the ranks before.
    yield claim("base of a rank", [own == 0, held == _TOTAL], held == _TOTAL + own)
    yield claim("step of a rank", [held == _TOTAL + own], held + _X_P == _TOTAL + (own + _X_P))
    yield claim("next rank", [held == _TOTAL + own, _RANKS == _TOTAL], held == _RANKS + own)


@rule_theorem(
    ("layouts.is_partition", "spec.SHARD as PARTIAL"),
    control="two ranks hold one element",
    sources=_LABELS,
)
def a_partition_is_a_sum_of_its_parts(right: bool) -> Iterator[Claim]:
    """If each element is held by exactly one rank, the whole is the sum over ranks of their parts, each placed in
    zeros: by induction over ranks the sum at an element is x times the number of ranks that hold it, for any number of
    ranks.
    """
    held = z3.Bool("held")
    count, x = z3.Real("held_before"), z3.Real("x")
    yield base([_SUM == 0, count == 0], count * x == _SUM)
    yield step([count * x == _SUM], _SUM + when(held, x) == (count + z3.If(held, z3.RealVal(1), z3.RealVal(0))) * x)
    yield claim("each once", [count * x == _SUM, count == 1 if right else count >= 1], x == _SUM)


@rule_theorem(
    ("spec.all SHARD",),
    control="one operand holds other indices of the label than the other",
    sources=_LABELS,
)
def a_function_of_parts_is_the_part_of_the_function(right: bool) -> Iterator[Claim]:
    """Let a result depend, at an index of its labels, only on the elements of the operands at this index, and on all of
    the labels that are whole. If every operand holds the same indices p(i) of a label, the result of the ranks at i is
    that of the whole at p(i): for every function f, any pieces, sizes and ranks. What f does along whole labels is part
    of f.
    """
    real, number = z3.RealSort(), z3.IntSort()
    f = z3.Function("f", real, real, real)
    x, y = z3.Function("x", number, real), z3.Function("y", number, real)
    pieces, others = z3.Function("pieces", number, number), z3.Function("other_pieces", number, number)
    i = z3.Int("i")
    of_rank, other = z3.Reals("x_of_rank y_of_rank")
    second = pieces(i) if right else others(i)
    yield claim(
        "any index",
        [i >= 0, of_rank == x(pieces(i)), other == y(second)],
        f(of_rank, other) == f(x(pieces(i)), y(pieces(i))),
    )


_A, _B, _C = z3.Reals("a b c")


@rule_theorem(
    ("spec.PARTIAL under joint linearity",),
    control="the operation adds a constant on every rank",
    sources=_LABELS,
)
def addends_under_an_operation_that_is_linear_in_them(right: bool) -> Iterator[Claim]:
    """Let an operation be a x + b y at an index, where a and b depend only on operands that all ranks hold there. If x
    and y are sums of addends of the ranks, the results of the ranks are addends of the result: by induction over ranks.
    An addend counts where its rank holds the index, else 0.
    """
    held = z3.Bool("held")
    x, y, x_sum, y_sum = z3.Reals("x y x_sum y_sum")
    constant = z3.RealVal(0) if right else _C
    result = _A * x_sum + _B * y_sum + constant
    yield base([x_sum == 0, y_sum == 0, _SUM == 0, constant == 0], result == _SUM)
    yield step(
        [result == _SUM],
        _SUM + when(held, _A * x + _B * y + constant)
        == _A * (x_sum + when(held, x)) + _B * (y_sum + when(held, y)) + constant,
    )


@rule_theorem(
    ("spec.PARTIAL under joint linearity",),
    control="a rank lacks an index of a label that the addends do not have",
    sources=_LABELS,
)
def addends_meet_every_index_that_they_lack(right: bool) -> Iterator[Claim]:
    """Let an addend lack a label of the other operand. If all ranks hold the label whole, each addend meets every index
    of it, and the results are addends of the product: by induction over ranks.
    """
    x, x_sum = z3.Reals("x x_sum")
    holds = z3.BoolVal(True) if right else z3.Bool("holds_the_other_label")
    yield base([x_sum == 0, _SUM == 0], _A * x_sum == _SUM)
    yield step([_A * x_sum == _SUM], _SUM + when(holds, _A * x) == _A * (x_sum + x))


@rule_theorem(
    ("spec.reduced label cut", "spec.PARTIAL under joint linearity"),
    control="the sum over the label is squared",
    sources=_LABELS,
)
def a_sum_over_a_label_is_linear(right: bool) -> Iterator[Claim]:
    """A contraction, the sum over a label of a_k x_k, is additive in x and takes out a factor: by induction over the
    label, for any size. So it is linear in each operand, and a mean is linear as a multiple of a sum.
    """
    x, y, x_sum, y_sum, both = z3.Reals("x y x_sum y_sum both")

    def of(total: z3.ArithRef) -> z3.ArithRef:
        return total if right else total * total

    yield base([x_sum == 0, y_sum == 0, both == 0], of(both) == of(x_sum) + _C * of(y_sum))
    yield step(
        [both == x_sum + _C * y_sum],
        of(both + _A * (x + _C * y)) == of(x_sum + _A * x) + _C * of(y_sum + _A * y),
    )


@rule_theorem(
    ("rules._rescaled",), control="the ranks divide by the number of all elements", sources=("rules", "specs")
)
def a_mean_over_own_elements_is_rescaled(right: bool) -> Iterator[Claim]:
    """If every rank divides its sum by its own number of elements n, what the ranks have are addends of N/n times the
    mean over all N elements: for all n and N that are not 0.
    """
    own, whole, of_ranks, mean = z3.Reals("own_count whole_count of_ranks mean")
    divisor = own if right else whole
    yield claim(
        "the factor",
        [own > 0, whole > 0, of_ranks * divisor == _SUM, mean * whole == _SUM],
        of_ranks * own == whole * mean,
    )
