"""Proofs about shipped integer functions: what must be rejected is rejected."""

from __future__ import annotations

import types

import pytest
import z3
from tpinit.proofs import edited_source
from tpinit.proofs.claims import Verdict
from tpinit.proofs.edited_source import edited_module
from tpinit.proofs.integers import Lemma, arbitrary_range, prove_lemmas, summarised, term
from tpinit.proofs.symbolic import SymbolicInt, Unsupported
from tpinit.runtime import shards
from tpinit.runtime.groups import topology

X, Y = z3.Ints("x y")


def _x() -> SymbolicInt:
    """Not a name of this module: pytest asks every name what it is, and a symbolic integer refuses."""
    return SymbolicInt(X)


def _module(source: str) -> types.ModuleType:
    module = types.ModuleType("made")
    exec(source, module.__dict__)
    edited_source._SOURCES[module] = source  # as of an edited module
    return module


def _verdict(given, computes) -> Verdict:
    return prove_lemmas([Lemma("lemma", given, computes)]).verdict


def test_a_lemma_holds_or_falls_on_every_integer():
    assert _verdict(X > 1, lambda: term(_x() + 1) > 2) is Verdict.PROVED
    assert _verdict(X > 1, lambda: term(_x() + 1) != 104_730) is Verdict.REFUTED


def test_premises_that_nothing_satisfies_are_vacuous():
    assert _verdict(z3.And(X > 1, X < 1), lambda: term(_x()) == 7) is Verdict.VACUOUS


def test_no_lemmas_prove_nothing():
    assert prove_lemmas([]).verdict is Verdict.VACUOUS


def test_code_that_raises_is_refuted():
    result = prove_lemmas([Lemma("lemma", X >= 0, lambda: term(1 // _x()) >= 0)])
    assert result.verdict is Verdict.REFUTED
    assert "ZeroDivisionError" in result.detail


def test_a_solver_that_does_not_know_makes_it_unknown(monkeypatch):
    from tpinit.proofs import integers
    from tpinit.proofs.solvers import SolverAnswer

    monkeypatch.setitem(integers.SOLVERS, "shy", lambda _terms: SolverAnswer.UNKNOWN)
    assert _verdict(X > 1, lambda: term(_x()) > 0) is Verdict.UNKNOWN
    monkeypatch.setitem(integers.SOLVERS, "shy", lambda _terms: SolverAnswer.SAT)
    assert _verdict(X > 1, lambda: term(_x()) > 0) is Verdict.DISAGREEMENT


@pytest.mark.parametrize(
    "source",
    [
        "def f(n): return tuple(i for i in range(1, n))",
        "def f(n): return tuple(i for i in range(n) for j in range(n) for k in range(n))",
        "def f(n):\n    k = 0\n    for i in range(n): k = k + i\n    return (k,)",
    ],
)
def test_other_ranges_are_not_followed(source):
    module = _module(source)

    def computes() -> z3.BoolRef:
        with arbitrary_range(module, X, Y):
            return term(module.f(_x()).only) >= 0

    assert _verdict(X >= 0, computes) is Verdict.UNKNOWN


def test_the_range_is_given_back():
    module = _module("def f(n): return list(range(n))")
    with arbitrary_range(module, X) as asked:
        assert len(module.f(_x())) == 1
    assert asked == [X]
    assert module.f(3) == [0, 1, 2]
    with summarised(shards, "shard", z3.Function("b", *[z3.IntSort()] * 4), z3.Function("h", *[z3.IntSort()] * 4)):
        assert str(shards.shard(1, 2, 3)[0].term) == "b(1, 2, 3)"
    assert shards.shard(5, 2, 0) == (0, 3)


def test_what_is_not_an_integer_is_not_followed():
    with pytest.raises(Unsupported, match="float"):
        term(1.5)


def test_an_edit_that_changes_nothing_is_no_control():
    with pytest.raises(ValueError, match="occurs 0 times"):
        edited_module(topology, "no such text", "")


@pytest.mark.parametrize("length", [0, 1, 5, 12])
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("blocks", [(4,), (6, 2), (4, 2, 2)])
def test_pieces_put_together_are_the_whole(length, parts, blocks):
    """The proofs say it of all integers; this says it of the code as it runs."""
    whole = list(range(sum(blocks) * 2))
    gathered: list[int | None] = [None] * len(whole)
    for index in range(parts):
        for offset, held in shards.pieces([block * 2 for block in blocks], 2, parts, index):
            assert offset % 2 == 0
            assert held % 2 == 0
            for position in range(offset, offset + held):
                assert gathered[position] is None
                gathered[position] = whole[position]
    assert gathered == whole
    tiles = [shards.shard(length, parts, index) for index in range(parts)]
    assert [p for offset, held in tiles for p in range(offset, offset + held)] == list(range(length))


def test_created_groups_are_what_is_proven_of_them():
    assert topology.tp_groups(6, 2) == ((0, 1), (2, 3), (4, 5))
    assert topology.dp_groups(6, 2) == ((0, 2, 4), (1, 3, 5))
    assert topology.partitions(topology.tp_groups(6, 2), 6)
    assert topology.crosses_once(topology.tp_groups(6, 2), topology.dp_groups(6, 2))
    assert not topology.crosses_once(topology.tp_groups(6, 2), topology.tp_groups(6, 2))
    assert not topology.partitions(((0, 1), (1, 2)), 3)
