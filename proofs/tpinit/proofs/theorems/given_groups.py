"""Section 6, item 8: what `topology` says of groups that a user gives, on every path, for groups of any number and
size.

A sequence of groups is opaque: a loop over it sees one arbitrary group, and a loop over that group one arbitrary rank;
it supports nothing else. So what holds of this element holds of all. The builtins that see whole groups are replaced by
functions that accept only these elements and return a mark; of them the proofs use what Python's documentation says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import z3
from tpinit.proofs.integers import Lemma, lemma_theorem, replaced, term
from tpinit.proofs.subset.grammar import BUILTINS
from tpinit.proofs.symbolic import SymbolicBool, SymbolicInt, Unsupported
from tpinit.runtime.groups import topology

_W, _RANK = z3.Ints("world rank")
# Whether the ranks of all groups, sorted, are 0 to n - 1, and how many ranks two groups have in common.
_IS_ALL = z3.Function("sorted_ranks_are_all_below", z3.IntSort(), z3.BoolSort())
_COMMON = z3.Function("ranks_in_common", z3.IntSort(), z3.IntSort(), z3.IntSort())
_TP, _DP = 1, 2


class _Opaque:
    """One arbitrary item stands for all items. `kind` tells two sequences apart."""

    def __init__(self, kind: int, item: object) -> None:
        self.kind, self._item = kind, item

    def __iter__(self) -> Iterator[object]:
        yield self._item

    # Python raises TypeError for each of these, which refutes a lemma.
    __len__ = __getitem__ = __contains__ = __add__ = __radd__ = __mul__ = __bool__ = None
    __eq__ = __hash__ = None  # type: ignore[assignment]


def _groups(kind: int) -> _Opaque:
    return _Opaque(kind, _Opaque(kind, SymbolicInt(_RANK)))


def _only(values: Iterable[object]) -> object:
    found = list(values)
    if len(found) != 1:
        raise Unsupported("the code under proof did not take each item once")
    return found[0]


class _Mark:
    """A whole value of a builtin that the proof replaced. Two marks are compared by `meaning`."""

    def __init__(self, what: str, of: Any = None) -> None:
        self.what, self.of = what, of

    def __eq__(self, other: object) -> Any:
        if not isinstance(other, _Mark) or (self.what, other.what) != ("sorted ranks", "whole range"):
            raise Unsupported("the code under proof compared what the proof does not support")
        return SymbolicBool(_IS_ALL(other.of))

    def __and__(self, other: object) -> _Mark:
        if not isinstance(other, _Mark) or (self.what, other.what) != ("set", "set"):
            raise Unsupported("the code under proof used & for what are no sets")
        return _Mark("common", (self.of, other.of))

    __hash__ = None  # type: ignore[assignment]


def _sorted(ranks: Iterable[object]) -> _Mark:
    rank = _only(ranks)
    if type(rank) is not SymbolicInt or not rank.term.eq(_RANK):
        raise Unsupported("the code under proof sorted other values than the ranks")
    return _Mark("sorted ranks")


def _of(what: str, given: object, wanted: str) -> _Mark:
    if type(given) is not _Mark or given.what != wanted:
        raise Unsupported(f"the code under proof asked for a {what} of what the proof does not support")
    return _Mark(what, given.of)


def _refused(*_: object, **__: object) -> object:
    raise Unsupported("the code under proof used a builtin for which one item does not stand for all")


# With one arbitrary item, `any` and `all` are alike. So each lemma replaces the builtins that it supports, and no other
# may be used.
_BUILTINS: dict[str, object] = dict.fromkeys(BUILTINS, _refused)


@lemma_theorem(
    "6.8", topology, control=("== list(range(world_size))", "== list(range(world_size + 1))"), proves=("partitions",)
)
def partitions_means_every_rank_once(m: Any) -> list[Lemma]:
    """For any number of groups of any size, `partitions` is true exactly when the ranks of all groups together, sorted,
    are 0 to world - 1.
    """

    def result() -> z3.BoolRef:
        used: dict[str, object] = {
            "sorted": _sorted,
            "range": lambda n: _Mark("range", term(n)),
            "list": lambda r: _of("whole range", r, "range"),
        }
        with replaced(m, **(_BUILTINS | used)):
            return term(m.partitions(_groups(_TP), SymbolicInt(_W))) == _IS_ALL(_W)

    return [Lemma("all ranks", z3.BoolVal(True), result)]


@lemma_theorem("6.8", topology, control=("for dp in all_dp)", "for dp in all_tp)"), proves=("crosses_once",))
def crosses_once_means_one_rank_in_common(m: Any) -> list[Lemma]:
    """For any numbers of TP and DP groups of any sizes, `crosses_once` is true exactly when each TP group has exactly
    one rank in common with each DP group.
    """

    def of_set(group: object) -> _Mark:
        if type(group) is not _Opaque:
            raise Unsupported("the code under proof made a set of what is no given group")
        return _Mark("set", group.kind)

    def size(given: object) -> SymbolicInt:
        return SymbolicInt(_COMMON(*_of("size", given, "common").of))

    def result() -> z3.BoolRef:
        with replaced(m, **(_BUILTINS | {"set": of_set, "len": size, "all": _only})):
            return term(m.crosses_once(_groups(_TP), _groups(_DP))) == (_COMMON(_TP, _DP) == 1)

    return [Lemma("one in common", z3.BoolVal(True), result)]


@lemma_theorem(
    "6.8",
    topology,
    control=("return tuple(zip(*groups, strict=True))", "return tuple(zip(*groups, strict=True))[:-1]"),
    proves=("orthogonal_groups",),
)
def orthogonal_groups_are_the_columns(m: Any) -> list[Lemma]:
    """For any number of groups of one size, `orthogonal_groups` returns the columns of the groups: `zip` of all of
    them, unchanged, which is strict about the sizes.
    """

    def zipped(*groups: object, strict: bool = False) -> _Mark:
        if strict is not True or type(_only(groups)) is not _Opaque:
            raise Unsupported("the code under proof zipped other values than the groups")
        return _Mark("columns")

    def result() -> z3.BoolRef:
        used: dict[str, object] = {"zip": zipped, "tuple": lambda given: _of("tuple", given, "columns")}
        with replaced(m, **(_BUILTINS | used)):
            found = m.orthogonal_groups(_groups(_TP))
        return z3.BoolVal(type(found) is _Mark and found.what == "tuple")

    return [Lemma("the columns", z3.BoolVal(True), result)]
