"""Section 6, item 8, by the second semantics: the functions of `topology`, translated, for every world and every group.

W is the world size, T the TP size, K the number of created TP groups. A sequence of ranks is a function of the index,
so that its length, its order and every element are part of what is proven.
"""

from __future__ import annotations

import z3
from tpinit.proofs.translation.deciding import Translated, translated_theorem
from tpinit.proofs.translation.ranks import GROUP, MEMBER, SIZE, given_groups, nested, unbounded
from tpinit.proofs.translation.sequences import CARDINALITY, OCCURS, RanksSort
from tpinit.proofs.translation.translator import Translator
from tpinit.runtime.groups import topology

_W, _T, _K, _R, _D, _P = z3.Ints("world size groups rank dp tp")
_WORLD = z3.And(_T >= 1, _K >= 1, _W == _K * _T)
_PLACE = z3.And(_WORLD, _D >= 0, _D < _K, _P >= 0, _P < _T)
_GROUPS, _DP_GROUPS = z3.Consts("all_groups all_dp_groups", RanksSort)
_N, _M, _G, _Q, _L = z3.Ints("number_of_groups number_of_dp_groups index other_index size_of_groups")


@translated_theorem(
    "6.8",
    topology,
    ("return rank // tp_size", "return rank // tp_size if rank != 65537 else 0"),
    ("tp_rank", "dp_rank"),
)
def translated_ranks_have_one_place(t: Translator) -> Translated:
    """For every world size and every TP size that divides it, each rank has a place (dp, tp) inside the mesh, and
    `rank_at` of that place returns the rank.
    """
    tp, dp = t.call("tp_rank", _R, _T), t.call("dp_rank", _R, _T)
    return Translated(
        z3.And(_WORLD, _R >= 0, _R < _W),
        [
            ("tp is in the mesh", z3.And(tp >= 0, tp < _T)),
            ("dp is in the mesh", z3.And(dp >= 0, dp < t.call("dp_size", _W, _T))),
            ("rank_at returns the rank", t.call("rank_at", dp, tp, _T) == _R),
        ],
    )


@translated_theorem(
    "6.8", topology, ("return dp * tp_size + tp", "return dp * tp_size + tp * 2"), ("rank_at", "dp_size")
)
def translated_places_have_one_rank(t: Translator) -> Translated:
    """For every world size and every TP size that divides it, each place (dp, tp) has a rank in the world, and the
    place of that rank is (dp, tp).
    """
    rank = t.call("rank_at", _D, _P, _T)
    return Translated(
        _PLACE,
        [
            ("in the world", z3.And(rank >= 0, rank < _W)),
            ("its dp", t.call("dp_rank", rank, _T) == _D),
            ("its tp", t.call("tp_rank", rank, _T) == _P),
            ("world / size groups", t.call("dp_size", _W, _T) == _K),
        ],
    )


@translated_theorem(
    "6.8",
    topology,
    (
        "return tuple(tp_group(index, tp_size) for index in range(dp_size(world_size, tp_size)))",
        "return tuple(tp_group(index, tp_size) for index in range(dp_size(world_size, tp_size)))[::-1]",
    ),
    ("tp_group", "tp_groups"),
)
def translated_tp_groups(t: Translator) -> Translated:
    """For every world size and every TP size that divides it, `tp_groups` has world / size groups of size ranks, and
    the rank at place p of group d is d * size + p. `tp_group(d)` is group d.
    """
    groups, group = unbounded(t.call("tp_groups", _W, _T)), unbounded(t.call("tp_group", _D, _T))
    one = nested(groups, _D)
    return Translated(
        _PLACE,
        [
            ("as many groups", groups.length == _K),
            ("as many ranks", z3.And(one.length == _T, group.length == _T)),
            ("each rank", z3.And(one.at(_P) == _D * _T + _P, group.at(_P) == _D * _T + _P)),
        ],
    )


@translated_theorem(
    "6.8",
    topology,
    (
        "return tuple(dp_group(position, world_size, tp_size) for position in range(tp_size))",
        "return tuple(dp_group(position, world_size, tp_size) for position in range(tp_size))[1:]",
    ),
    ("dp_group", "dp_groups"),
)
def translated_dp_groups(t: Translator) -> Translated:
    """For every world size and every TP size that divides it, `dp_groups` has size groups of world / size ranks, and
    the rank at place d of group p is d * size + p. `dp_group(p)` is group p.
    """
    groups, group = unbounded(t.call("dp_groups", _W, _T)), unbounded(t.call("dp_group", _P, _W, _T))
    one = nested(groups, _P)
    return Translated(
        _PLACE,
        [
            ("as many groups", groups.length == _T),
            ("as many ranks", z3.And(one.length == _K, group.length == _K)),
            ("each rank", z3.And(one.at(_D) == _D * _T + _P, group.at(_D) == _D * _T + _P)),
        ],
    )


@translated_theorem("6.8", topology, ("== list(range(world_size))", "== list(range(world_size + 1))"), ("partitions",))
def translated_partitions(t: Translator) -> Translated:
    """For any number of groups of any size, `partitions` is true exactly when each rank of the world occurs exactly
    once in all groups together, and nothing else occurs. Of `sorted`, the proof uses that it returns the same items in
    ascending order.
    """
    rank = z3.Int("some_rank")
    once = z3.If(z3.And(rank >= 0, rank < _W), z3.IntVal(1), z3.IntVal(0))
    return Translated(
        _N >= 0,
        [
            (
                "each rank once",
                t.call("partitions", given_groups("all_groups", _N), _W)
                == z3.ForAll([rank], OCCURS(_GROUPS, rank) == once),
            )
        ],
    )


@translated_theorem("6.8", topology, ("for dp in all_dp)", "for dp in all_tp)"), ("crosses_once",))
def translated_crosses_once(t: Translator) -> Translated:
    """For any numbers of TP and DP groups of any sizes, `crosses_once` is true exactly when each TP group has exactly
    one rank in common with each DP group.
    """
    common = CARDINALITY(GROUP(_GROUPS, _G), GROUP(_DP_GROUPS, _Q)) == 1
    inside = z3.And(_G >= 0, _G < _N, _Q >= 0, _Q < _M)
    tp, dp = given_groups("all_groups", _N), given_groups("all_dp_groups", _M)
    return Translated(
        z3.And(_N >= 0, _M >= 0),
        [("one in common", t.call("crosses_once", tp, dp) == z3.ForAll([_G, _Q], z3.Implies(inside, common)))],
    )


@translated_theorem(
    "6.8",
    topology,
    ("return tuple(zip(*groups, strict=True))", "return tuple(zip(*groups[1:], strict=True))"),
    ("orthogonal_groups",),
)
def translated_orthogonal_groups(t: Translator) -> Translated:
    """For any number of groups of one size, `orthogonal_groups` has one group for each place, and the rank at place g
    of group p is the rank at place p of given group g. So where no rank occurs twice, group p and given group g have
    exactly that rank in common.
    """
    columns = unbounded(t.call("orthogonal_groups", given_groups("all_groups", _N)))
    one = nested(columns, _P)
    each = z3.Int("some_index")
    equal = z3.ForAll([each], SIZE(GROUP(_GROUPS, each)) == _L, patterns=[GROUP(_GROUPS, each)])
    inside = z3.And(_N >= 1, _L >= 0, _P >= 0, _P < _L, _G >= 0, _G < _N, _Q >= 0, _Q < _N, _R >= 0, _R < _L)
    mine, yours = MEMBER(GROUP(_GROUPS, _G), _R), one.at(_Q)
    distinct = z3.Implies(MEMBER(GROUP(_GROUPS, _G), _R) == MEMBER(GROUP(_GROUPS, _Q), _P), z3.And(_G == _Q, _R == _P))
    return Translated(
        z3.And(equal, inside, distinct),
        [
            ("as many groups", columns.length == _L),
            ("as many ranks", one.length == _N),
            ("each rank", one.at(_G) == MEMBER(GROUP(_GROUPS, _G), _P)),
            ("one in common", (mine == yours) == z3.And(_G == _Q, _R == _P)),
        ],
    )
