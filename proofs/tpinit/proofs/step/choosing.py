"""Elements that are chosen, added or written at indices (`specs`), and tensors that are written part by part."""

from __future__ import annotations

from collections.abc import Iterator

import z3
from tpinit.proofs.claims import Claim
from tpinit.proofs.step.lemmas import base, claim, rule_theorem, step, when

_NUMBER, _REAL = z3.IntSort(), z3.RealSort()
_I, _INDEX, _PLACE = z3.Ints("i index place")
_X = z3.Function("x", _NUMBER, _REAL)
_SUM, _SELF, _SOURCE, _TOTAL, _FACTOR = z3.Reals("sum self source total factor")


@rule_theorem(
    ("labels.index_select", "labels.index", "labels.gather"),
    control="a rank has only a part of the dimension of which elements are chosen",
    sources=("specs",),
)
def elements_are_chosen_from_a_whole_dimension(right: bool) -> Iterator[Claim]:
    """A choice has at i the element x(index(i)). If every rank holds the dimension whole, the indices that a rank has
    choose the elements that the whole's indices choose there. It moves elements, so it is linear in x.
    """
    index, pieces = z3.Function("index", _NUMBER, _NUMBER), z3.Function("pieces", _NUMBER, _NUMBER)
    own = z3.Function("x_of_rank", _NUMBER, _REAL)
    at = index(pieces(_I))
    held = own(at) == _X(at if right else pieces(at))
    yield claim("the element", [_I >= 0, held], own(at) == _X(index(pieces(_I))))


@rule_theorem(
    ("labels.scatter_add", "labels.index_add", "labels.index_put"),
    control="each rank adds its own indices to a tensor that all ranks hold",
    sources=("specs",),
)
def sources_are_added_at_indices(right: bool) -> Iterator[Claim]:
    """Adding sources at indices gives at each place the element there plus the sources whose index is the place: by
    induction over the sources it is linear in the tensor and the sources together. So tensors and sources that are
    addends give addends, by induction over ranks, if every rank holds the dimension and the indices whole. Writing in
    place of adding is linear in both too.
    """
    tensor, sources, grown = z3.Reals("tensor_sum sources_sum grown")
    here = when(_INDEX == _PLACE, _SOURCE)
    yield claim("base over sources", [_TOTAL == _SELF, _SUM == 0], _TOTAL == _SELF + _SUM)
    yield claim("step over sources", [_TOTAL == _SELF + _SUM], _TOTAL + here == _SELF + (_SUM + here))
    # Over ranks: `grown` is the sum of results, each rank adds its part of the tensor and of the sources.
    own = _SELF if right else tensor
    after = tensor + _SELF if right else tensor
    yield base([tensor == 0, sources == 0, grown == 0], grown == tensor + sources)
    yield step([grown == tensor + sources], grown + (own + here) == after + (sources + here))
    written = z3.Bool("written")
    yield claim(
        "written",
        [],
        z3.If(written, _SOURCE + _FACTOR * sources, _SELF + _FACTOR * tensor)
        == z3.If(written, _SOURCE, _SELF) + _FACTOR * z3.If(written, sources, tensor),
    )


@rule_theorem(
    (
        *tuple(f"RULES.{name}" for name in ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")),
        "JOINED.tpinit.write_view",
    ),
    control="an index that was not written is read",
    sources=("rules", "rules_joined"),
)
def what_was_written_is_read(right: bool) -> Iterator[Claim]:
    """A new tensor has any elements. Where a slice is written, it has those of the written part, and else what it had:
    so an index in a slice reads the part that was written last there, by induction over the later writes, which lie
    elsewhere.
    """
    start, length, other, size = z3.Ints("start length other other_length")
    before, after = z3.Reals("before after")
    inside = z3.And(start <= _I, start + length > _I)
    elsewhere = z3.Or(other > _I, other + size <= _I)
    place = inside if right else z3.BoolVal(True)
    yield base([place, after == z3.If(inside, _X(_I - start), before)], after == _X(_I - start))
    later = z3.Real("later")
    yield step(
        [inside, elsewhere, before == _X(_I - start), later == z3.If(elsewhere, before, after)], later == _X(_I - start)
    )
