"""The values of the translation: terms, optional values, records, and sequences.

A sequence of bounded length is a tuple of items, each present where its guard holds. A sequence of unbounded length is
a function of the index. Terms, records and sequences never change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import z3
from tpinit.proofs.exploring import Unsupported
from tpinit.spec.symbols import constant

__all__ = [
    "EMPTY_MAPPING",
    "NOTHING",
    "Appended",
    "Indexed",
    "Items",
    "Maybe",
    "OpaqueSort",
    "Record",
    "Value",
    "choose",
    "is_number",
    "item",
    "length",
    "lift",
    "same",
    "truth",
]

# A term, or one of the classes below, or a function of the module.
Value = Any

OpaqueSort = z3.DeclareSort("Opaque")
EMPTY_MAPPING = z3.Const("empty_mapping", OpaqueSort)
TRUE, FALSE = z3.BoolVal(True), z3.BoolVal(False)


@dataclass(frozen=True)
class Maybe:
    """A value where `present` holds, else None."""

    present: z3.BoolRef
    value: Value


NOTHING = Maybe(FALSE, None)


@dataclass(frozen=True)
class Record:
    """A record of the vocabulary."""

    of: type
    fields: Mapping[str, Value]


@dataclass(frozen=True)
class Items:
    """A sequence of bounded length: the items whose guards hold, in order."""

    items: tuple[tuple[z3.BoolRef, Value], ...] = ()

    @staticmethod
    def of(*values: Value) -> Items:
        """Return the sequence of these values."""
        return Items(tuple((TRUE, value) for value in values))

    @property
    def is_fixed(self) -> bool:
        """Whether every item is always present."""
        return all(z3.is_true(guard) for guard, _ in self.items)


@dataclass(frozen=True)
class Appended:
    """A list inside of a loop over any number of items: it holds what one round appends, and can't be read."""

    items: tuple[tuple[z3.BoolRef, Value], ...] = ()


@dataclass(frozen=True)
class Indexed:
    """A sequence of any length: the value at each index from 0 to `length` - 1.

    `token` stands for the whole sequence where the caller gave it and nothing changed it.
    """

    length: z3.ArithRef
    at: Callable[[z3.ArithRef], Value]
    token: z3.ExprRef | None = None


def lift(value: object) -> Value:
    """Return a Python constant as a value: a number, a member of an enum, None, or the default of a field."""
    if value is None:
        return NOTHING
    if isinstance(value, Enum):
        return constant(value)
    if type(value) is bool:
        return z3.BoolVal(value)
    if type(value) is int:
        return z3.IntVal(value)
    if type(value) is tuple:
        return Items.of(*map(lift, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: lift(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return Record(type(value), fields)
    raise Unsupported(f"a constant of type {type(value).__name__} is not translated")


def is_number(value: Value) -> bool:
    """Return whether a value is an integer or a bool."""
    return isinstance(value, z3.ArithRef | z3.BoolRef)


def truth(value: Value) -> z3.BoolRef:
    """Return the truth value that Python gives a value."""
    if isinstance(value, z3.BoolRef):
        return value
    if isinstance(value, z3.ArithRef):
        return value != 0
    if isinstance(value, Maybe):
        return FALSE if value.value is None else z3.simplify(z3.And(value.present, truth(value.value)))
    if isinstance(value, Record):
        return TRUE
    if isinstance(value, Items):
        return z3.simplify(z3.Or(*(guard for guard, _ in value.items))) if value.items else FALSE
    if isinstance(value, Indexed):
        return value.length > 0
    raise Unsupported(f"the truth value of {_name(value)} is not translated")


def length(value: Value) -> z3.ArithRef:
    """Return the number of items of a sequence."""
    if isinstance(value, Indexed):
        return value.length
    if isinstance(value, Items):
        return count([guard for guard, _ in value.items])
    raise Unsupported(f"the length of {_name(value)} is not translated")


def count(guards: Sequence[z3.BoolRef]) -> z3.ArithRef:
    """Return how many guards hold."""
    return z3.simplify(z3.Sum([z3.IntVal(0), *(z3.If(guard, z3.IntVal(1), z3.IntVal(0)) for guard in guards)]))


def item(sequence: Items, place: z3.ArithRef) -> Value:
    """Return the item at a place, counted from 0; any item where there are not so many."""
    found: Value = None
    for index in reversed(range(len(sequence.items))):
        guard, value = sequence.items[index]
        here = z3.simplify(z3.And(guard, count([each for each, _ in sequence.items[:index]]) == place))
        found = value if found is None else choose(here, value, found)
    if found is None:
        raise Unsupported("an item of a sequence that is always empty")
    return found


def choose(condition: z3.BoolRef, one: Value, other: Value) -> Value:
    """Return `one` where the condition holds, else `other`."""
    condition = z3.simplify(condition)
    if one is other or z3.is_true(condition):
        return one
    if z3.is_false(condition):
        return other
    if isinstance(one, Maybe) or isinstance(other, Maybe):
        return _choose_maybe(condition, _maybe(one), _maybe(other))
    if isinstance(one, z3.ExprRef) and isinstance(other, z3.ExprRef) and one.sort() == other.sort():
        return one if one.eq(other) else z3.If(condition, one, other)
    if isinstance(one, Record) and isinstance(other, Record) and one.of is other.of:
        fields = {name: choose(condition, value, other.fields[name]) for name, value in one.fields.items()}
        return Record(one.of, fields)
    if isinstance(one, Items) and isinstance(other, Items):
        return _choose_items(condition, one.items, other.items)
    if isinstance(one, Appended) and isinstance(other, Appended):
        return Appended(_choose_items(condition, one.items, other.items).items)
    if isinstance(one, Indexed) and isinstance(other, Indexed):
        return Indexed(
            z3.If(condition, one.length, other.length), lambda index: choose(condition, one.at(index), other.at(index))
        )
    raise Unsupported(f"a choice between {_name(one)} and {_name(other)} is not translated")


def _maybe(value: Value) -> Maybe:
    return value if isinstance(value, Maybe) else Maybe(TRUE, value)


def _choose_maybe(condition: z3.BoolRef, one: Maybe, other: Maybe) -> Maybe:
    present = z3.simplify(z3.If(condition, one.present, other.present))
    if one.value is None or other.value is None:
        return Maybe(present, other.value if one.value is None else one.value)
    return Maybe(present, choose(condition, one.value, other.value))


_Pairs = tuple[tuple[z3.BoolRef, Value], ...]


def _choose_items(condition: z3.BoolRef, one: _Pairs, other: _Pairs) -> Items:
    if len(one) == len(other) and all(mine.eq(yours) for (mine, _), (yours, _) in zip(one, other, strict=True)):
        pairs = zip(one, other, strict=True)
        return Items(tuple((guard, choose(condition, mine, yours)) for (guard, mine), (_, yours) in pairs))
    common = 0
    while common < min(len(one), len(other)) and one[common] is other[common]:
        common += 1
    mine = tuple((z3.simplify(z3.And(condition, guard)), value) for guard, value in one[common:])
    yours = tuple((z3.simplify(z3.And(z3.Not(condition), guard)), value) for guard, value in other[common:])
    return Items((*one[:common], *(pair for pair in (*mine, *yours) if not z3.is_false(pair[0]))))


def same(one: Value, other: Value) -> z3.BoolRef:
    """Return the term that says that two values are equal, with all their parts."""
    if isinstance(one, Maybe) or isinstance(other, Maybe):
        mine, yours = _maybe(one), _maybe(other)
        if mine.value is None or yours.value is None:
            return z3.And(z3.Not(mine.present), z3.Not(yours.present))
        return z3.And(mine.present == yours.present, z3.Implies(mine.present, same(mine.value, yours.value)))
    if isinstance(one, z3.ExprRef) and isinstance(other, z3.ExprRef):
        return one == other if one.sort() == other.sort() else FALSE
    if isinstance(one, Record) and isinstance(other, Record) and one.of is other.of:
        return z3.And(*(same(value, other.fields[name]) for name, value in one.fields.items()))
    if isinstance(one, Items) and isinstance(other, Items):
        return z3.And(length(one) == length(other), *_same_items(one.items, other.items))
    if isinstance(one, Record | Items | z3.ExprRef) and isinstance(other, Record | Items | z3.ExprRef):
        return FALSE  # values of two kinds
    raise Unsupported(f"{_name(one)} is not compared with {_name(other)}")


def _same_items(one: _Pairs, other: _Pairs) -> Iterator[z3.BoolRef]:
    """Yield, for each two items, that they are equal where both are present at one place."""
    places = [count([guard for guard, _ in one[:index]]) for index in range(len(one))]
    others = [count([guard for guard, _ in other[:index]]) for index in range(len(other))]
    for place, (mine, value) in zip(places, one, strict=True):
        for at, (yours, expected) in zip(others, other, strict=True):
            meet = z3.simplify(z3.And(mine, yours, place == at))
            if not z3.is_false(meet):
                yield z3.Implies(meet, same(value, expected))


def _name(value: Value) -> str:
    if isinstance(value, z3.ExprRef):
        return f"a value of sort {value.sort()}"
    return f"a {value.of.__name__}" if isinstance(value, Record) else f"a {type(value).__name__}"
