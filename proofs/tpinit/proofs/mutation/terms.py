"""Mutation operators for Z3 terms. A change refers to a position, so it applies to an equal term of another model.

`leaves` are terms with their own definition in section 4 (given(...), in scope, effective size). Operators do
not descend into them, because they are mutated at their definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import z3

__all__ = ["TermChange", "node_at", "changes", "apply_change"]

Rewrite = Callable[[z3.ExprRef], z3.ExprRef]


@dataclass(frozen=True, slots=True)
class TermChange:
    """One change: the position of the node (child indices from the root), a description, and the function."""

    place: tuple[int, ...]
    description: str
    rewrite: Rewrite


def node_at(term: z3.ExprRef, place: Sequence[int]) -> z3.ExprRef:
    """Return the node at a position."""
    return node_at(term.arg(place[0]), place[1:]) if place else term


def apply_change(term: z3.ExprRef, change: TermChange) -> z3.ExprRef:
    """Return the term with the change applied."""
    return _put(term, change.place, change.rewrite(node_at(term, change.place)))


def _put(term: z3.ExprRef, place: Sequence[int], new: z3.ExprRef) -> z3.ExprRef:
    if not place:
        return new
    children = term.children()
    children[place[0]] = _put(children[place[0]], place[1:], new)
    if z3.is_and(term):
        return z3.And(*children)
    if z3.is_or(term):
        return z3.Or(*children)
    return term.decl()(*children)


def changes(term: z3.ExprRef, leaves: Sequence[z3.ExprRef]) -> Iterator[TermChange]:
    """Yield every change of the term, from the root down."""
    words = {leaf.get_id() for leaf in leaves}
    yield from _of(term, (), words)


def _of(term: z3.ExprRef, place: tuple[int, ...], words: set[int]) -> Iterator[TermChange]:
    known = term.get_id() in words
    if z3.is_bool(term):
        yield TermChange(place, f"the opposite of {_text(term)}", _negated)
        yield TermChange(place, f"true for {_text(term)}", lambda _: z3.BoolVal(True))
        yield TermChange(place, f"false for {_text(term)}", lambda _: z3.BoolVal(False))
    if known or not z3.is_app(term):
        return
    yield from _at_node(term, place)
    for index, child in enumerate(term.children()):
        yield from _of(child, (*place, index), words)


def _at_node(term: z3.ExprRef, place: tuple[int, ...]) -> Iterator[TermChange]:
    children = term.children()
    if (z3.is_and(term) or z3.is_or(term)) and len(children) > 1:
        word = "or" if z3.is_and(term) else "and"
        yield TermChange(place, f"{word} for the connective of {_text(term)}", _swapped)
    for name, compare in _COMPARISONS.get(term.decl().kind(), ()) if children and z3.is_int(children[0]) else ():
        yield TermChange(place, f"{name} in {_text(term)}", _comparing(compare))
    if term.decl().kind() == z3.Z3_OP_MOD:
        yield TermChange(place, f"operands swapped in {_text(term)}", lambda node: node.arg(1) % node.arg(0))
        yield TermChange(place, f"only the dividend of {_text(term)}", lambda node: node.arg(0))
    if z3.is_int_value(term):
        for step in (-1, 1):
            yield TermChange(place, f"{term.as_long() + step} for {term}", _plus(step))


def _negated(term: z3.ExprRef) -> z3.ExprRef:
    return term.arg(0) if z3.is_not(term) else z3.Not(term)


def _swapped(term: z3.ExprRef) -> z3.ExprRef:
    return z3.Or(*term.children()) if z3.is_and(term) else z3.And(*term.children())


def _comparing(compare: Callable[[z3.ExprRef, z3.ExprRef], z3.ExprRef]) -> Rewrite:
    return lambda node: compare(node.arg(0), node.arg(1))


def _plus(step: int) -> Rewrite:
    return lambda node: z3.IntVal(node.as_long() + step)


_LESS = ("<", lambda a, b: a < b)
_LESS_EQUAL = ("<=", lambda a, b: a <= b)
_EQUAL = ("==", lambda a, b: a == b)
_MORE_EQUAL = (">=", lambda a, b: a >= b)
_MORE = (">", lambda a, b: a > b)
# The replacements of each comparison; its negation is another operator.
_COMPARISONS = {
    z3.Z3_OP_LT: (_LESS_EQUAL, _EQUAL, _MORE),
    z3.Z3_OP_LE: (_LESS, _EQUAL, _MORE_EQUAL),
    z3.Z3_OP_GT: (_MORE_EQUAL, _EQUAL, _LESS),
    z3.Z3_OP_GE: (_MORE, _EQUAL, _LESS_EQUAL),
    z3.Z3_OP_EQ: (_LESS_EQUAL, _MORE_EQUAL),
    z3.Z3_OP_DISTINCT: (_LESS, _MORE),
}


def _text(term: z3.ExprRef) -> str:
    text = " ".join(term.sexpr().split())  # str(term) is far slower
    return text if len(text) <= 70 else f"{text[:45]}...{text[-20:]}"
