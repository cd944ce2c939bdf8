"""One witness a class: the nicest of a small set of candidates, the same with any solver and version.

A solver's own state would do as a witness, but it is neither small nor the same from one version to the
next. So each family has a product of few values, evaluated at once as columns, and of all candidates in
a class the first in a fixed order is taken: the fewest violations beside what the class asks for, a
disabled section that would be noticed if it were read, groups that real ranks can form, sizes within
the world, the preferred world, and the fewest things given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType
from typing import Any

import numpy as np
import z3
from tpinit.proofs import brute
from tpinit.proofs.claims import right_model
from tpinit.proofs.vectors.families import Family, valuation
from tpinit.spec.model import Model
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section, ViolationCode

__all__ = ["MissingWitness", "columns_of", "signatures_of", "witnesses"]

Columns = dict[str, Any]
_DTYPES = tuple(DType)
_NAMES = (
    *("tpi", "call_size", "call_dtype"),
    *("section", "autotp_given", "autotp", "alias_given", "alias", "dtype_given", "dtype"),
    *("precision_given", "precision"),
    *("tpg", "call_group", "mpu", "mpu_group", "cgroup_given", "cgroup", "mesh", "mesh_group"),
    *("size_0", "size_1", "size_2", "size_3"),
    "world",
)
_BOOLEANS = frozenset(
    ("tpi", "section", "autotp_given", "alias_given", "dtype_given", "precision_given", "tpg", "mpu", "cgroup_given")
) | {"mesh"}


class MissingWitness(RuntimeError):
    """No candidate is of a class that the solver found: the candidates are too few."""


@dataclass(frozen=True, slots=True)
class Values:
    """The values that a family's candidates are a product of; what comes first is preferred.

    Every size, dtype and group may also be absent. `apart` lets groups be different objects.
    """

    call: tuple[int, ...] = (2,)
    autotp: tuple[int, ...] = (2, 0)
    alias: tuple[int, ...] = ()
    call_dtypes: tuple[DType, ...] = (DType.BF16,)
    dtypes: tuple[DType, ...] = ()
    precisions: tuple[DType, ...] = ()
    group_sizes: tuple[int, ...] = (2,)
    apart: bool = False
    worlds: tuple[int, ...] = (2, 4)


# Worlds of 2 come first, being cheap to start; of 4 where a size must differ from the world to be told from it.
_VALUES: Mapping[str, Values] = MappingProxyType(
    {
        "sizes": Values((2, 1, 4, 0, -1, -2), (2, 1, 4, 0, -1, -2), (2, 1, 4, 0, -1, -2), group_sizes=(2, 1, 4)),
        "dtypes": Values(
            call_dtypes=(DType.BF16, DType.FP16, DType.FP32),
            dtypes=(DType.BF16, DType.FP16, DType.FP32),
            precisions=(DType.BF16, DType.FP16),
        ),
        "identities": Values(apart=True),
        "group-sizes": Values(alias=(2,), group_sizes=(2, 1), apart=True),
        "division": Values((2, 3, -1), (2, 3, 0, -1), (2, 3, -1), group_sizes=(2, 3)),
        "successes": Values(
            alias=(2,),
            dtypes=(DType.BF16, DType.FP16),
            precisions=(DType.BF16,),
            group_sizes=(2, 1),
            apart=True,
            worlds=(4,),
        ),
        "errors": Values(
            (2, 3, -1),
            (2, 3, 0, -1),
            (2, 3, -1),
            dtypes=(DType.BF16,),
            precisions=(DType.FP16,),
            group_sizes=(2, 1),
            apart=True,
        ),
    }
)


def _maybe(values: Sequence[int]) -> list[tuple[int, int]]:
    return [(0, 0), *((1, value) for value in values)]


def _dtypes(values: Sequence[DType]) -> list[int]:
    return [_DTYPES.index(value) for value in values]


def _groupings(sizes: Sequence[int], apart: bool) -> Iterator[tuple[int, ...]]:
    """Give every way to supply the four groups: which are there, which are the same object, and their sizes."""
    for present in product((False, True), repeat=4):
        for identities in product(range(4 if apart else 1), repeat=sum(present)):
            firsts = list(dict.fromkeys(identities))
            if firsts != list(range(len(firsts))):
                continue  # the same partition under other names
            for given in product(sizes, repeat=len(firsts)):
                left = iter(identities)
                slots = [(1, next(left)) if there else (0, 0) for there in present]
                size_of = (*given, 1, 1, 1, 1)[:4]
                yield (*(value for slot in slots for value in slot), *size_of)


def _table(values: Values) -> Any:
    calls = [(0, 0, 0), *((1, *pair) for pair in product(values.call, _dtypes(values.call_dtypes)))]
    fields = product(_maybe(values.autotp), _maybe(values.alias), _maybe(_dtypes(values.dtypes)))
    sections = [(0,) * 7, *((1, *one, *two, *three) for one, two, three in fields)]
    parts = (
        calls,
        sections,
        _maybe(_dtypes(values.precisions)),
        list(_groupings(values.group_sizes, values.apart)),
        [(world,) for world in values.worlds],
    )
    columns = [np.array(part, dtype=np.int64) for part in parts]
    picks = np.indices([len(part) for part in columns]).reshape(len(columns), -1)
    return np.hstack([part[pick] for part, pick in zip(columns, picks, strict=True)])


def _named(table: Any) -> Columns:
    columns = {
        name: table[:, place].astype(bool) if name in _BOOLEANS else table[:, place]
        for place, name in enumerate(_NAMES)
    }
    return columns | {"size_of": np.stack([columns[f"size_{group}"] for group in range(4)], axis=1)}


def _candidates(values: Values) -> Columns:
    table = _table(values)
    columns = _named(table)
    typed = (columns["tpi"] | ~columns["tpg"]) & (columns["section"] | ~columns["cgroup_given"])
    return _named(table[typed])


def signatures_of(family: Family, model: Model, columns: Columns) -> tuple[Any, Any]:
    """Evaluate the family over columns: the signature of each row as an integer, and which rows it is about.

    The first atom is the highest bit. No solver takes part.
    """
    known: dict[int, Any] = {}
    rows = len(columns["size_of"])
    atoms, within = valuation(family, model), z3.And(model.well_typed, family.within(model))
    code = np.zeros(rows, dtype=np.int64)
    for atom in atoms:
        code = code * 2 + np.broadcast_to(brute.evaluate(atom, columns, known), rows)
    return code, np.broadcast_to(brute.evaluate(within, columns, known), rows)


def _costs(model: Model, columns: Columns, values: Values) -> list[Any]:
    """List what makes a candidate worse than another, the weightiest first."""
    s = model.given_input
    dead_and_alike = z3.And(
        model.disabled,
        z3.Or(
            z3.And(s.dtype_given, s.precision_given, s.dtype == s.precision),
            z3.And(s.cgroup_given, s.mpu, s.cgroup == s.mpu_group),
            z3.And(s.cgroup_given, s.mesh, s.cgroup == s.mesh_group),
        ),
    )
    effective = model.effective_size
    too_big = z3.And(effective.exists, effective.value > s.world)
    # Terms are kept in a list: a term's id, by which its value is known, is its own only as long as it lives.
    terms = [dead_and_alike, too_big, *(model.violation(code) for code in ViolationCode)]
    known: dict[int, Any] = {}
    rows = len(columns["size_of"])
    dead, big, *violations = (
        np.broadcast_to(brute.evaluate(term, columns, known), rows).astype(np.int64) for term in terms
    )
    world = columns["world"]
    unfit = np.any(world[:, None] % columns["size_of"] != 0, axis=1)
    preferred = np.select([world == one for one in values.worlds], list(range(len(values.worlds))))
    given = sum(columns[name].astype(np.int64) for name in sorted(_BOOLEANS))
    return [sum(violations), dead, unfit, big, preferred, given]


def witnesses(family: Family, signatures: Sequence[str]) -> dict[str, Inputs]:
    """Find the witness of each class. Raises MissingWitness where no candidate is of a class."""
    model, values = right_model(), _VALUES[family.name]
    columns = _candidates(values)
    code, within = signatures_of(family, model, columns)
    costs = _costs(model, columns, values)
    order = np.lexsort([np.arange(len(code)), *reversed(costs)])
    order = order[within[order]]
    _, first = np.unique(code[order], return_index=True)
    chosen = {int(code[row]): int(row) for row in order[first]}
    found: dict[str, Inputs] = {}
    for signature in signatures:
        row = chosen.get(int(signature, 2))
        if row is None:
            raise MissingWitness(f"family {family.name}: no candidate has the signature {signature}")
        found[signature] = _inputs(columns, row)
    return found


def _inputs(columns: Columns, row: int) -> Inputs:
    def number(name: str) -> int:
        return int(columns[name][row])

    def group(gate: str, name: str) -> Group | None:
        if not columns[gate][row]:
            return None
        identity = number(name)
        return Group(identity, int(columns["size_of"][row, identity]))

    def size(gate: str, name: str) -> int | None:
        return number(name) if columns[gate][row] else None

    def dtype(gate: str, name: str) -> DType | None:
        return _DTYPES[number(name)] if columns[gate][row] else None

    mpu_group = group("mpu", "mpu_group")
    return Inputs(
        number("world"),
        Call(number("call_size"), _DTYPES[number("call_dtype")], group("tpg", "call_group")) if number("tpi") else None,
        Section(
            size("autotp_given", "autotp"),
            size("alias_given", "alias"),
            dtype("dtype_given", "dtype"),
            group("cgroup_given", "cgroup"),
        )
        if number("section")
        else None,
        dtype("precision_given", "precision"),
        None if mpu_group is None else Mpu(mpu_group),
        group("mesh", "mesh_group"),
    )


def columns_of(cases: Sequence[Inputs]) -> Columns:
    """Lay inputs out as columns, one a row, for `signatures_of`. Groups are numbered anew in each row."""
    return _named(np.array([_row(inputs) for inputs in cases], dtype=np.int64))


def _row(inputs: Inputs) -> tuple[int, ...]:
    call, section, mpu = inputs.call, inputs.section or Section(), inputs.mpu
    places: dict[int, int] = {}
    sizes = [1, 1, 1, 1]

    def group(value: Group | None) -> tuple[int, int]:
        if value is None:
            return 0, 0
        place = places.setdefault(value.identity, len(places))
        sizes[place] = value.size
        return 1, place

    def size(value: int | None) -> tuple[int, int]:
        return (0, 0) if value is None else (1, value)

    def dtype(value: DType | None) -> tuple[int, int]:
        return (0, 0) if value is None else (1, _DTYPES.index(value))

    groups = (
        *group(None if call is None else call.tp_group),
        *group(None if mpu is None else mpu.tp_group),
        *group(section.tp_group),
        *group(inputs.mesh),
    )
    return (
        *((0, 0, 0) if call is None else (1, call.tp_size, _DTYPES.index(call.dtype))),
        *(int(inputs.section is not None), *size(section.autotp_size), *size(section.tp_size), *dtype(section.dtype)),
        *dtype(inputs.precision),
        *groups,
        *sizes,
        inputs.world_size,
    )
