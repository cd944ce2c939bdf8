"""The cross-entropy of logits that are cut by vocabulary, and its gradient (`rules_loss`), for any number of ranks.

Exponentials are positive reals, related by exp(a) exp(b) = exp(a + b) for the sums that occur; x is a logit, m_r the
greatest logit of rank r, m the greatest of all.
"""

from __future__ import annotations

from collections.abc import Iterator

import z3
from tpinit.proofs.claims import Claim
from tpinit.proofs.step.lemmas import base, claim, rule_theorem, step, when

_OWN, _WHOLE, _SUM, _TOTAL, _S, _P = z3.Reals("own whole sum total scale probability")
# exp(x - m_r), exp(m_r - m), exp(x - m), exp(m)
_OF_RANK, _RANK, _OF_ALL, _TOP = z3.Reals("exp_x_mr exp_mr_m exp_x_m exp_m")
_POSITIVE = (_OF_RANK > 0, _RANK > 0, _OF_ALL > 0, _TOP > 0)

_LOSS = ("rules_loss",)
_PROGRAM = (
    "STARTS.amax",
    "STARTS.gather",
    "ENDS.where",
    "rules_loss.local_result",
)


@rule_theorem(_PROGRAM, control="the sum of a rank is not rescaled to the greatest logit of all", sources=_LOSS)
def sums_of_exponentials_are_rescaled(right: bool) -> Iterator[Claim]:
    """The sum over a rank's logits of exp(x - m_r), times exp(m_r - m), is the sum of exp(x - m): by induction over its
    logits. So the sum of these products over ranks is that over the whole vocabulary: by induction over ranks.
    """
    law = _OF_RANK * _RANK == _OF_ALL if right else _OF_RANK == _OF_ALL
    yield claim("base of a rank", [*_POSITIVE, _OWN == 0, _WHOLE == 0], _OWN * _RANK == _WHOLE)
    yield claim(
        "step of a rank",
        [*_POSITIVE, law, _OWN * _RANK == _WHOLE],
        (_OWN + _OF_RANK) * _RANK == _WHOLE + _OF_ALL,
    )
    yield claim("base over ranks", [_SUM == 0, _TOTAL == 0], _SUM == _TOTAL)
    yield claim(
        "step over ranks", [*_POSITIVE, _SUM == _TOTAL, _OWN * _RANK == _WHOLE], _SUM + _OWN * _RANK == _TOTAL + _WHOLE
    )


@rule_theorem(_PROGRAM, control="the logarithm of the sum lacks the greatest logit", sources=_LOSS)
def the_logarithm_adds_the_greatest_logit(right: bool) -> Iterator[Claim]:
    """With E the sum of exp(x) and T that of exp(x - m), E = exp(m) T, by induction over the vocabulary; so log E = m +
    log T, and the loss of a token is m + log T - x at its target. The law log(a b) = log a + log b for positive a and b
    is used.
    """
    exp_x, e_sum, m = z3.Reals("exp_x e_sum m")
    log = z3.Function("log", z3.RealSort(), z3.RealSort())
    law = exp_x == _TOP * _OF_ALL
    yield base([*_POSITIVE, e_sum == 0, _TOTAL == 0], e_sum == _TOP * _TOTAL)
    yield step([*_POSITIVE, law, e_sum == _TOP * _TOTAL], e_sum + exp_x == _TOP * (_TOTAL + _OF_ALL))
    log_e, log_t, log_top = log(e_sum), log(_TOTAL), log(_TOP)
    yield claim(
        "logarithm",
        [*_POSITIVE, _TOTAL > 0, e_sum > 0, log_e == log_top + log_t, log_top == m],
        log_e == (m if right else z3.RealVal(0)) + log_t,
    )


@rule_theorem(_PROGRAM, control="a rank counts the target of another rank", sources=_LOSS)
def the_logit_of_the_target_is_on_one_rank(right: bool) -> Iterator[Claim]:
    """The ranks add up the logit at the target, 0 on each rank whose range lacks it: by induction over ranks of a
    partition, the sum is the logit at the target. A target that is ignored lies in no range or in one; its loss is
    replaced by 0.
    """
    target, low, high, size = z3.Ints("target low high size")
    x, other = z3.Reals("x other")
    so_far = when(target < low, x) == _SUM
    outside = z3.RealVal(0) if right else other
    yield base([target >= 0, low == 0, _SUM == 0], so_far)
    yield step(
        [target >= 0, low <= high, low >= 0, so_far],
        _SUM + z3.If(z3.And(low <= target, target < high), x, outside) == when(target < high, x),
    )
    yield claim("all ranks", [target >= 0, target < size, low == size, so_far], x == _SUM)


@rule_theorem(_PROGRAM, control="the maximum of the ranks is one of them, not the greatest", sources=_LOSS)
def the_greatest_of_the_greatest_is_the_greatest(right: bool) -> Iterator[Claim]:
    """The greatest of the ranks' greatest logits is at least each logit, and is one of them: by induction over ranks.
    It only scales: the two theorems before hold for every m.
    """
    m, m_r, x, y = z3.Reals("m m_r x y")
    both = z3.If(m >= m_r, m, m_r) if right else m
    yield claim("next rank", [x <= m, y <= m_r], z3.And(x <= both, y <= both, z3.Or(both == m, both == m_r)))


@rule_theorem(
    ("ENDS.scatter_add", "operations_loss.loss_gradient"),
    control="the probability is that of the rank's logits only",
    sources=("rules_loss", "operations_loss"),
)
def the_gradient_is_the_softmax_without_the_target(right: bool) -> Iterator[Claim]:
    """exp(x - m_r) times scale times exp(m_r - m) / T is scale times the softmax exp(x - m) / T of the whole logits; at
    the target, which lies in the range of one rank, the scale is taken off. So each rank has its part of scale (softmax
    - one-hot), and 0 for an ignored target, of which the scale is 0.
    """
    relative, change = z3.Reals("relative change")
    own_sum = z3.Real("own_sum")
    is_target, counted = z3.Bools("is_target counted")
    divisor = _TOTAL if right else own_sum
    given = [*_POSITIVE, _TOTAL > 0, own_sum > 0, _OF_RANK * _RANK == _OF_ALL]
    yield claim(
        "probability",
        [*given, relative * divisor == _RANK, _P * _TOTAL == _OF_ALL],
        _OF_RANK * (_S * relative) == _S * _P,
    )
    yield claim(
        "target",
        [change == _S * z3.If(z3.And(is_target, counted), 1.0, 0.0), z3.Implies(z3.Not(counted), _S == 0)],
        _S * _P - change == when(counted, _S * (_P - z3.If(is_target, 1.0, 0.0))),
    )


@rule_theorem(
    ("operations_loss.loss_gradient", "softmax._log_softmax_backward_data", "softmax._softmax_backward_data"),
    control="the sum of the gradient is left out",
    sources=("operations_loss", "specs"),
)
def the_gradient_of_log_softmax_with_that_of_the_loss(right: bool) -> Iterator[Claim]:
    """The gradient of log-softmax is g - softmax times the sum of g over the vocabulary. The loss gives g = -scale at
    the target and 0 elsewhere, with the sum -scale: together scale (softmax - one-hot). It is linear in g, as is that
    of softmax.
    """
    g, g_sum = z3.Reals("g g_sum")
    is_target = z3.Bool("is_target")
    total = g_sum if right else z3.RealVal(0)
    hot = z3.If(is_target, z3.RealVal(1), z3.RealVal(0))
    yield claim("together", [g == -_S * hot, g_sum == -_S], g - _P * total == _S * (_P - hot))
    other, other_sum = z3.Reals("other other_sum")
    yield claim("linear", [], (g + other) - _P * (g_sum + other_sum) == (g - _P * g_sum) + (other - _P * other_sum))
