"""Collectives: what every rank holds after one (`rules_collectives`), for any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator

import z3
from tpinit.proofs.claims import Claim
from tpinit.proofs.step.lemmas import base, claim, rule_theorem, step, when

_NUMBER, _REAL = z3.IntSort(), z3.RealSort()
_RANKS, _R, _I, _LENGTH = z3.Ints("ranks r i length")
_X, _OWN, _RECEIVED, _TOTAL = z3.Reals("x own received total")
_OF = z3.Function("x_of", _NUMBER, _REAL)
_P = z3.Function("pieces", _NUMBER, _NUMBER, _NUMBER)

_SOURCE = ("rules_collectives",)


@rule_theorem(
    ("COLLECTIVES.collective.all_reduce",),
    control="a rank holds its addend at another index",
    sources=_SOURCE,
)
def an_all_reduce_of_addends_is_the_whole(right: bool) -> Iterator[Claim]:
    """If all ranks hold the same indices, the sum that an all-reduce gives at a local index is that of the addends
    placed at its global index: the whole there. By induction over ranks.
    """
    place, other = z3.Ints("place place_of_rank")
    yield base([_RECEIVED == 0, _TOTAL == 0], _RECEIVED == _TOTAL)
    yield step(
        [_RECEIVED == _TOTAL, *([other == place] if right else [])],
        _TOTAL + when(other == place, _OWN) == _RECEIVED + _OWN,
    )


@rule_theorem(
    ("COLLECTIVES.collective.all_reduce",), control="the mean of the ranks is taken for the sum", sources=_SOURCE
)
def an_all_reduce_of_equal_tensors_is_a_multiple(right: bool) -> Iterator[Claim]:
    """The sum of n equal tensors is n times each, their greatest, least and mean are each of them: by induction over
    ranks.
    """
    count = z3.Real("count")
    times = count * _X == _RECEIVED if right else _RECEIVED == _X
    yield base([_RECEIVED == 0, count == 0], count * _X == _RECEIVED)
    yield step([times], (count + 1) * _X == _RECEIVED + _X)
    yield claim("greatest", [_RECEIVED == _X], z3.If(_RECEIVED > _X, _RECEIVED, _X) == _X)
    yield claim("least", [_RECEIVED == _X], z3.If(_RECEIVED < _X, _RECEIVED, _X) == _X)
    yield claim("mean", [count >= 1, count * _X == _RECEIVED, count * _TOTAL == _RECEIVED], _TOTAL == _X)


@rule_theorem(
    ("COLLECTIVES.collective.all_gather",),
    control="the tensors are received in another order",
    sources=_SOURCE,
)
def gathered_parts_are_parts_on_every_rank(right: bool) -> Iterator[Claim]:
    """What every rank receives of rank r is the whole at the indices of r. Joined along the first dimension, parts of
    length n have at i the element of rank i div n at i mod n; parts of different lengths are joined one after another,
    as `joined_pieces_are_the_parts_one_after_another` says.
    """
    sent = _OF(_P(_R, _I))
    yield claim("of one rank", [_R >= 0, _R < _RANKS, _I >= 0, sent == _RECEIVED], _OF(_P(_R, _I)) == _RECEIVED)
    place = _R * _LENGTH + _I
    held = z3.Function("joined", _NUMBER, _NUMBER)
    index = held(place) == _P(_R if right else _R + 1, _I)
    yield claim(
        "joined",
        [_R >= 0, _R < _RANKS, _I >= 0, _I < _LENGTH, sent == _RECEIVED, index],
        _OF(held(place)) == _RECEIVED,
    )


@rule_theorem(
    ("COLLECTIVES.collective.reduce_scatter",), control="rank r receives the part of the next rank", sources=_SOURCE
)
def a_reduce_scatter_gives_each_rank_its_part_of_the_sum(right: bool) -> Iterator[Claim]:
    """Rank r receives at i the sum of the addends at r n + i, which is the whole there; these parts have the pieces (r
    n, n), which lie in the dimension of n times the number of ranks, and no two of them overlap.
    """
    start = _R * _LENGTH if right else (_R + 1) * _LENGTH
    other = z3.Int("other")
    given = [_R >= 0, _R < _RANKS, _I >= 0, _I < _LENGTH]
    yield claim("the part", [*given, _OF(_R * _LENGTH + _I) == _RECEIVED], _OF(start + _I) == _RECEIVED)
    yield claim("inside", given, z3.And(_R * _LENGTH + _I >= 0, _R * _LENGTH + _LENGTH <= (_R + 1) * _LENGTH))
    yield claim("apart", [*given, other >= 1], (_R + other) * _LENGTH >= _R * _LENGTH + _LENGTH)


@rule_theorem(("COLLECTIVES.collective.broadcast",), control="the ranks send different tensors", sources=_SOURCE)
def a_broadcast_of_equal_tensors_changes_none(right: bool) -> Iterator[Claim]:
    """If all ranks hold the same indices of a whole, the tensor of any rank is that of each."""
    source = z3.Int("source")
    same = _P(source, _I) == _P(_R, _I)
    given = [_R >= 0, source >= 0, _I >= 0, _OF(_P(source, _I)) == _RECEIVED, *([same] if right else [])]
    yield claim("any rank", given, _OF(_P(_R, _I)) == _RECEIVED)
