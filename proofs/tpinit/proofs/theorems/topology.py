"""Section 6, item 8: the shipped topology, for every world size and every TP size that divides it.

All integers are unbounded. W is the world size, T the TP size; T divides W when W == K * T with K >= 1.
"""

from __future__ import annotations

from typing import Any

import z3
from tpinit.proofs.integers import Lemma, arbitrary_range, lemma_theorem, term
from tpinit.proofs.symbolic import SymbolicInt
from tpinit.runtime.groups import topology

_W, _T, _K, _R, _D, _P, _OTHER_D, _OTHER_P = z3.Ints("world size groups rank dp tp other_dp other_tp")
_WORLD = z3.And(_T >= 1, _K >= 1, _W == _K * _T)
_RANK = z3.And(_WORLD, _R >= 0, _R < _W)
_PLACE = z3.And(_WORLD, _D >= 0, _D < _K, _P >= 0, _P < _T)

_world, _size, _rank, _dp, _tp, _other_dp, _other_tp = map(SymbolicInt, (_W, _T, _R, _D, _P, _OTHER_D, _OTHER_P))


@lemma_theorem(
    "6.8",
    topology,
    control=("return rank // tp_size", "return rank // tp_size if rank != 65537 else 0"),
    proves=("tp_rank", "dp_rank", "rank_at"),
)
def every_rank_has_one_place(m: Any) -> list[Lemma]:
    """For every world size and every TP size that divides it, each rank has a place (dp, tp) inside the mesh, and
    `rank_at` of that place returns the rank.
    """
    return [
        Lemma(
            "the place is in the mesh",
            _RANK,
            lambda: z3.And(
                term(m.tp_rank(_rank, _size)) >= 0,
                term(m.tp_rank(_rank, _size)) < _T,
                term(m.dp_rank(_rank, _size)) >= 0,
                term(m.dp_rank(_rank, _size)) < term(m.dp_size(_world, _size)),
            ),
        ),
        Lemma("rank_at returns the rank", _RANK, lambda: term(_back(m, _rank)) == _R),
    ]


def _back(m: Any, rank: SymbolicInt) -> object:
    return m.rank_at(m.dp_rank(rank, _size), m.tp_rank(rank, _size), _size)


@lemma_theorem(
    "6.8", topology, control=("return dp * tp_size + tp", "return dp * tp_size + tp * 2"), proves=("rank_at", "dp_size")
)
def every_place_has_one_rank(m: Any) -> list[Lemma]:
    """For every world size and every TP size that divides it, each place (dp, tp) has a rank in the world, and the
    place of that rank is (dp, tp): the map from ranks to places is a bijection.
    """

    def rank() -> Any:
        return m.rank_at(_dp, _tp, _size)

    return [
        Lemma("in the world", _PLACE, lambda: z3.And(term(rank()) >= 0, term(rank()) < _W)),
        Lemma("its dp", _PLACE, lambda: term(m.dp_rank(rank(), _size)) == _D),
        Lemma("its tp", _PLACE, lambda: term(m.tp_rank(rank(), _size)) == _P),
        Lemma("world / size groups", _WORLD, lambda: term(m.dp_size(_world, _size)) == _K),
    ]


@lemma_theorem(
    "6.8",
    topology,
    control=(
        "return tuple(rank_at(index, position, tp_size) for position in range(tp_size))",
        "return tuple(rank_at(index, position, tp_size) for position in range(tp_size - 1))",
    ),
    proves=("tp_groups",),
)
def created_tp_groups_partition_the_ranks(m: Any) -> list[Lemma]:
    """For every world size and every TP size that divides it, there are world / size created TP groups, and each
    holds exactly the ranks whose dp is the index of the group, in the order of their tp. So every rank is in
    exactly one TP group, once.
    """

    def members() -> z3.BoolRef:
        with arbitrary_range(m, _D, _P) as lengths:
            member = m.tp_groups(_world, _size).only.only
        return z3.And(lengths[0] == _K, lengths[1] == _T, term(member) == _D * _T + _P)

    def same_rank_same_place() -> z3.BoolRef:
        one, other = m.rank_at(_dp, _tp, _size), m.rank_at(_other_dp, _other_tp, _size)
        return z3.Implies(term(one) == term(other), z3.And(_D == _OTHER_D, _P == _OTHER_P))

    other = z3.And(_OTHER_D >= 0, _OTHER_D < _K, _OTHER_P >= 0, _OTHER_P < _T)
    return [
        Lemma("the members", _PLACE, members),
        Lemma("no rank twice", z3.And(_PLACE, other), same_rank_same_place),
        Lemma("no rank left out", _RANK, lambda: term(_back(m, _rank)) == _R),
    ]


@lemma_theorem(
    "6.8",
    topology,
    control=("range(dp_size(world_size, tp_size)))\n\n\ndef tp_groups", "range(tp_size))\n\n\ndef tp_groups"),
    proves=("dp_groups", "tp_group", "dp_group"),
)
def dp_groups_cross_each_tp_group_once(m: Any) -> list[Lemma]:
    """For every world size and every TP size that divides it, the DP group at each tp position holds one rank of
    every TP group, the rank at that position. TP group i and DP group p share the rank at (i, p) and no other.
    """

    def members() -> z3.BoolRef:
        with arbitrary_range(m, _P, _D) as lengths:
            member = m.dp_groups(_world, _size).only.only
        return z3.And(lengths[0] == _T, lengths[1] == _K, term(member) == _D * _T + _P)

    def common() -> z3.BoolRef:
        with arbitrary_range(m, _OTHER_P):
            of_tp_group = m.tp_group(_dp, _size).only
        with arbitrary_range(m, _OTHER_D):
            of_dp_group = m.dp_group(_tp, _world, _size).only
        place = z3.And(_OTHER_P == _P, _OTHER_D == _D)
        return (term(of_tp_group) == term(of_dp_group)) == place

    any_members = z3.And(_PLACE, _OTHER_P >= 0, _OTHER_P < _T, _OTHER_D >= 0, _OTHER_D < _K)
    return [Lemma("the members", _PLACE, members), Lemma("one in common", any_members, common)]
