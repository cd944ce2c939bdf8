"""Every claim of the lifter about a drawn program of 2 or 3 ranks is true of its numbers.

The programs are drawn from the operations of the rule tables, with layouts of all kinds (uneven, fused, permuted,
shared by ranks) and with arguments that may differ between the ranks. What is stuck is not judged.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import prod
from random import Random
from typing import Any

import numpy as np
from property.step.step_arrays import exact
from property.step.step_programs import Program
from property.step.step_values import Values
from tpinit.step.graph import Ref
from tpinit.step.layouts import Kind, Lifted, normal_axis
from tpinit.step.lift import Failure

_SIZES = (1, 2, 3, 4, 6)


def axis(rng: Random, size: int, ranks: int) -> Any:
    """Return the pieces of one dimension: a partition in order, one of scattered runs, or any runs that all together
    hold it.
    """
    kind = rng.choice(["whole", "even", "even", "uneven", "fused", "shared"])
    if kind == "whole":
        return None
    if kind == "even" and size % ranks == 0:
        length = size // ranks
        return normal_axis(size, [[(rank * length, length)] for rank in range(ranks)])
    if kind in ("even", "uneven"):
        bounds = [0, *sorted(rng.randint(0, size) for _ in range(ranks - 1)), size]
        return normal_axis(size, [[(low, high - low)] for low, high in itertools.pairwise(bounds)])
    owner = [rng.randrange(ranks) for _ in range(size)]
    held = [[(place, 1) for place in range(size) if owner[place] == rank] for rank in range(ranks)]
    if kind == "shared":
        held = [[*own, *((place, 1) for place in range(size) if rng.random() < 0.3)] for own in held]
    for own in held:
        rng.shuffle(own)
    return normal_axis(size, held)


def drawn_program(seed: int) -> Program:
    """Return a program of up to 14 operations; those that do not fit are left out."""
    rng = Random(seed)
    program = Program(rng.choice([2, 2, 3]))
    # One layout for each size, so that operands often fit together.
    usual = {size: axis(rng, size, program.ranks) for size in _SIZES}
    for name in "abcd":
        shape = [rng.choice(_SIZES) for _ in range(rng.choice([1, 2, 2, 2, 3]))]
        whole = exact([rng.choice([-3, -2, -1, 1, 2, 3]) for _ in range(prod(shape))]).reshape(shape)
        program.leaf(
            name,
            whole,
            [rng.choice([None, usual[size], usual[size], axis(rng, size, program.ranks)]) for size in shape],
        )
    ids = exact([rng.randint(0, 3) for _ in range(rng.choice([2, 3, 4]))])
    program.leaf("ids", ids, [rng.choice([None, usual[len(ids)]])], "int64")
    for _ in range(rng.randint(4, 14)):
        name = rng.choice(NAMES)
        first = Ref(rng.randrange(program.count))
        try:
            args = CALLS[name](rng, program, first)
            program.run(
                name, *(args if isinstance(args, list) else [args]), dtype="bool" if name in ("ge", "lt") else "float32"
            )
        except (ValueError, IndexError, TypeError, ZeroDivisionError, np.exceptions.AxisError):
            continue
    return program


def _other(rng: Random, program: Program) -> Ref:
    return Ref(rng.randrange(program.count))


def _dim(rng: Random, program: Program, of: Ref) -> int:
    return rng.randrange(max(program.array(of.value, 0).ndim, 1))


def _alike(rng: Random, program: Program, of: Ref) -> Ref:
    """Another value with the shapes of this one, where there is one."""
    shapes = [program.array(of.value, rank).shape for rank in range(program.ranks)]
    fits = [
        v for v in range(program.count) if [program.array(v, rank).shape for rank in range(program.ranks)] == shapes
    ]
    return Ref(rng.choice(fits))


def _each(rng: Random, program: Program, make: Any) -> Any:
    """Arguments of every rank: equal ones, or others on each."""
    if rng.random() < 0.8:
        return make(0)
    return [make(rank) for rank in range(program.ranks)]


def _slices(rng: Random, program: Program, of: Ref) -> Any:
    dim = _dim(rng, program, of)

    def make(rank: int) -> Any:
        size = program.array(of.value, rank).shape[dim]
        start = rng.randint(0, max(size - 1, 0))
        return (of, dim, start, rng.randint(min(start + 1, size), size), 1)

    return _each(rng, program, make)


def _views(rng: Random, program: Program, of: Ref) -> Any:
    count = rng.choice([1, 2, 2, 3])

    def make(rank: int) -> Any:
        size = program.array(of.value, rank).size
        shape = []
        while len(shape) < count - 1:
            shape.append(rng.choice([d for d in range(1, size + 1) if size % d == 0] or [0]))
            size //= max(shape[-1], 1)
        return (of, (*shape, size))

    if rng.random() < 0.5:  # the last dimensions are split or merged alike
        split = rng.choice([2, 2, 3])
        shapes = [program.array(of.value, rank).shape for rank in range(program.ranks)]
        if rng.random() < 0.5:
            return [(of, (*one[:-1], one[-1] // split, split)) for one in shapes]
        return [(of, (*one[:-2], one[-2] * one[-1])) for one in shapes]
    return [make(rank) for rank in range(program.ranks)]


def _sums(rng: Random, program: Program, of: Ref) -> Any:
    keep = rng.random() < 0.4

    def make(_: int) -> Any:
        dims = [dim for dim in range(program.array(of.value, 0).ndim) if rng.random() < 0.6]
        return (of, tuple(dims), keep, None)

    return _each(rng, program, make)


def _permutes(rng: Random, program: Program, of: Ref) -> Any:
    return (of, tuple(rng.sample(range(program.array(of.value, 0).ndim), program.array(of.value, 0).ndim)))


def _expands(rng: Random, program: Program, of: Ref) -> Any:
    new, size = rng.choice([(), (), (1,), (2,), (3,)]), rng.choice([2, 3, 4])

    def make(rank: int) -> Any:
        shape = program.array(of.value, rank).shape
        return (of, (*new, *(size if n == 1 else n for n in shape)), False)

    return [make(rank) for rank in range(program.ranks)]


def _selects(rng: Random, program: Program, of: Ref) -> Any:
    dim = _dim(rng, program, of)
    return _each(rng, program, lambda rank: (of, dim, rng.randrange(max(program.array(of.value, rank).shape[dim], 1))))


def _gradients(rng: Random, program: Program, of: Ref) -> Any:
    dim = _dim(rng, program, of)
    start = rng.randint(0, 2)
    after = rng.randint(0, 2)

    def make(rank: int) -> Any:
        shape = program.array(of.value, rank).shape
        size = start + shape[dim] + after
        return (of, (*shape[:dim], size, *shape[dim + 1 :]), dim, start, start + shape[dim], 1)

    return [make(rank) for rank in range(program.ranks)]


def _select_gradients(rng: Random, program: Program, of: Ref) -> Any:
    dim, size = _dim(rng, program, of), rng.choice([1, 2, 3])
    shapes = [program.array(of.value, rank).shape for rank in range(program.ranks)]
    return [(of, (*one[:dim], size, *one[dim:]), dim, rng.randrange(size)) for one in shapes]


def _numbers(rng: Random) -> Any:
    return rng.choice([2, -1, 3, 0])


CALLS: dict[str, Any] = {
    "rsub": lambda r, p, x: (x, r.choice([_alike(r, p, x), _numbers(r)]), 1),
    "index_add": lambda r, p, x: (x, _dim(r, p, x), Ref(4), _other(r, p), r.choice([1, 2])),
    "index_select": lambda r, p, x: (x, _dim(r, p, x), Ref(4)),
    "gather": lambda r, p, x: (x, _dim(r, p, x), Ref(4), False),
    "select_backward": _select_gradients,
    "add": lambda r, p, x: (x, r.choice([_alike(r, p, x), _other(r, p), _numbers(r)]), r.choice([1, 2])),
    "sub": lambda r, p, x: (x, r.choice([_alike(r, p, x), _numbers(r)]), 1),
    "mul": lambda r, p, x: (x, r.choice([_alike(r, p, x), _other(r, p), _numbers(r)])),
    "div": lambda r, p, x: (x, r.choice([_alike(r, p, x), 2])),
    "neg": lambda r, p, x: (x,),
    "pow": lambda r, p, x: (x, 2),
    "lerp": lambda r, p, x: (x, _alike(r, p, x), 2),
    "addcmul": lambda r, p, x: (x, _alike(r, p, x), _alike(r, p, x), 2),
    "where": lambda r, p, x: (x, r.choice([_alike(r, p, x), 2]), r.choice([_alike(r, p, x), 0])),
    "masked_fill": lambda r, p, x: (x, r.choice([_alike(r, p, x), _other(r, p)]), r.choice([0, 0, 1])),
    "silu": lambda r, p, x: (x,),
    "silu_backward": lambda r, p, x: (x, _alike(r, p, x)),
    "_softmax": lambda r, p, x: (x, _dim(r, p, x), False),
    "_softmax_backward_data": lambda r, p, x: (x, _alike(r, p, x), _dim(r, p, x), "float32"),
    "ge": lambda r, p, x: [(x, r.randint(0, 3)) for _ in range(p.ranks)] if r.random() < 0.5 else (x, r.randint(0, 3)),
    "lt": lambda r, p, x: [(x, r.randint(1, 4)) for _ in range(p.ranks)],
    "clone": lambda r, p, x: (x,),
    "ones_like": lambda r, p, x: (x,),
    "sum": _sums,
    "mean": _sums,
    "mm": lambda r, p, x: (x, _other(r, p)),
    "bmm": lambda r, p, x: (x, _other(r, p)),
    "addmm": lambda r, p, x: (x, _other(r, p), _other(r, p), 1, r.choice([1, 2])),
    "view": _views,
    "permute": _permutes,
    "transpose": lambda r, p, x: (x, _dim(r, p, x), _dim(r, p, x)),
    "t": lambda r, p, x: (x,) if p.array(x.value, 0).ndim == 2 else (),
    "expand": _expands,
    "slice": _slices,
    "select": _selects,
    "split": lambda r, p, x: (x, r.randint(1, 3), _dim(r, p, x)),
    "unbind": lambda r, p, x: (x, _dim(r, p, x)),
    "cat": lambda r, p, x: ((x, r.choice([_alike(r, p, x), _other(r, p)])), _dim(r, p, x)),
    "stack": lambda r, p, x: ((x, _alike(r, p, x)), _dim(r, p, x)),
    "slice_backward": _gradients,
    "embedding": lambda r, p, x: (x, Ref(4), -1, False, False),
    "embedding_dense_backward": lambda r, p, x: (x, Ref(4), 4, r.choice([-1, 1]), False),
    "collective.all_reduce": lambda r, p, x: (x, "sum"),
    "collective.all_gather": lambda r, p, x: (x, None),
    "collective.reduce_scatter": lambda r, p, x: (x, "sum"),
    "collective.broadcast": lambda r, p, x: (x, None),
}

NAMES = [*sorted(CALLS), "mm", "mm", "mul", "view", "view", "sum", "collective.all_reduce", "cat", "slice"]


def judged(program: Program, count: Callable[[Any], None]) -> str:
    """Return in which way a claim about a value of the program is false; empty if all hold."""
    lifter, terms = program.lifter(), Values(program.leaves)
    for value in range(program.count):
        found = lifter.lift((value,) * program.ranks)
        if isinstance(found, Failure):
            continue
        count(found)
        try:
            wrong = program.wrong((value,) * program.ranks, found, terms)
        except (ZeroDivisionError, IndexError):  # the whole divides by 0, or looks up a row that it lacks
            continue
        if wrong:
            return f"value {value}: {found}: {wrong}"
    return ""


def test_every_claim_about_a_drawn_program_is_true() -> None:
    for seed in range(1000):
        program = drawn_program(seed)
        assert not judged(program, lambda _: None), program


def test_the_drawn_programs_reach_every_kind_of_claim() -> None:
    kinds = Counter[str]()

    def count(claim: Any) -> None:
        kinds[claim.kind.value if isinstance(claim, Lifted) else type(claim).__name__] += 1

    for seed in range(400):
        judged(drawn_program(seed), count)
    assert kinds["partial"] >= 20
    assert {"shard", "partial", "RangeMask", "Joined"} <= set(kinds)


def test_a_wrong_claim_is_found() -> None:
    """The control: of a claim whose pieces change ranks, and of an addend that is taken for the whole."""
    program = Program(2)
    halves = (((0, 2),), ((2, 2),))
    x = program.leaf("a", exact([[1, 2], [3, 4], [5, 6], [7, 8]]), [halves, None])
    total = program.run("sum", (Ref(x), (0,), False, None))[0]
    lifter, terms = program.lifter(), Values(program.leaves)
    shard, addend = lifter.lift((x, x)), lifter.lift((total, total))
    assert isinstance(shard, Lifted)
    assert isinstance(addend, Lifted)
    assert addend.kind is Kind.PARTIAL
    assert program.wrong((x, x), replace(shard, index=(halves[::-1], None)), terms)
    assert program.wrong((total, total), replace(addend, kind=Kind.SHARD), terms)
    assert not program.wrong((total, total), addend, terms)
