"""One witness per class: the best of a small set of candidates, independent of the solver and its version.

A solver's model is a witness too, but it is not small and changes with the version. So each family has
candidates, the product of a few values, evaluated as columns. The witness of a class is its first candidate
in a fixed order: the fewest violations, a disabled section whose fields would cause a difference if they were
read, groups that real ranks can form, sizes within the world, the preferred world, and the fewest given fields.
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
from tpinit.proofs.brute import Columns
from tpinit.proofs.claims import right_model
from tpinit.proofs.vectors.families import VectorFamily, valuation
from tpinit.spec.model import Model
from tpinit.spec.vocabulary import Call, DType, Group, Inputs, Mpu, Section, ViolationCode

__all__ = ["MissingWitness", "columns_of", "signatures_of", "witnesses"]

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
    """A class that the solver found has no candidate: the set of candidates is too small."""


@dataclass(frozen=True, slots=True)
class CandidateValues:
    """The values whose product is the set of candidates of a family; earlier values are preferred.

    Every size, dtype and group may also be absent. `apart` allows groups to be different objects.
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


# A world of 2 is preferred because it is cheap to start; 4 where a size must differ from the world.
_VALUES: Mapping[str, CandidateValues] = MappingProxyType(
    {
        "sizes": CandidateValues(
            (2, 1, 4, 0, -1, -2), (2, 1, 4, 0, -1, -2), (2, 1, 4, 0, -1, -2), group_sizes=(2, 1, 4)
        ),
        "dtypes": CandidateValues(
            call_dtypes=(DType.BF16, DType.FP16, DType.FP32),
            dtypes=(DType.BF16, DType.FP16, DType.FP32),
            precisions=(DType.BF16, DType.FP16),
        ),
        "identities": CandidateValues(apart=True),
        "group-sizes": CandidateValues(alias=(2,), group_sizes=(2, 1), apart=True),
        "division": CandidateValues((2, 3, -1), (2, 3, 0, -1), (2, 3, -1), group_sizes=(2, 3)),
        "successes": CandidateValues(
            alias=(2,),
            dtypes=(DType.BF16, DType.FP16),
            precisions=(DType.BF16,),
            group_sizes=(2, 1),
            apart=True,
            worlds=(4,),
        ),
        "errors": CandidateValues(
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
    """Yield every way to supply the four groups: which are given, which are the same object, and their sizes."""
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


def _table(values: CandidateValues) -> Any:
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


def _candidates(values: CandidateValues) -> Columns:
    table = _table(values)
    columns = _named(table)
    typed = (columns["tpi"] | ~columns["tpg"]) & (columns["section"] | ~columns["cgroup_given"])
    return _named(table[typed])


def signatures_of(family: VectorFamily, model: Model, columns: Columns) -> tuple[Any, Any]:
    """Return the signature of each row as an integer, and a mask of the rows that the family is about.

    The first atom is the highest bit. The terms are evaluated without a solver.
    """
    known: dict[int, Any] = {}
    rows = len(columns["size_of"])
    atoms, within = valuation(family, model), z3.And(model.well_typed, family.within(model))
    code = np.zeros(rows, dtype=np.int64)
    for atom in atoms:
        code = code * 2 + np.broadcast_to(brute.evaluate(atom, columns, known), rows)
    return code, np.broadcast_to(brute.evaluate(within, columns, known), rows)


def _costs(model: Model, columns: Columns, values: CandidateValues) -> list[Any]:
    """Return the costs of each candidate, the most important first."""
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
    # The list keeps the terms alive: values are cached by the id of a term, and Z3 reuses ids of freed terms.
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


def witnesses(family: VectorFamily, signatures: Sequence[str]) -> dict[str, Inputs]:
    """Return the witness of each class. Raises MissingWitness where a class has no candidate."""
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
    """Return inputs as columns, one input per row, for `signatures_of`. Each row numbers its groups from 0."""
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
