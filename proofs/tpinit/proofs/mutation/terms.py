"""Every small change of a Z3 term, by position, so that the same change can be made of the same term elsewhere.

A term is read as what section 4 says: `leaves` are the model's own words (given(...), in scope, effective
size), which are not looked into, since they are changed where they are defined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import z3

__all__ = ["Change", "at", "changes", "rewritten"]

Rewrite = Callable[[z3.ExprRef], z3.ExprRef]


@dataclass(frozen=True, slots=True)
class Change:
    """One change: the place of the node in the term (child numbers from the top), what it does, and how."""

    place: tuple[int, ...]
    says: str
    rewrite: Rewrite


def at(term: z3.ExprRef, place: Sequence[int]) -> z3.ExprRef:
    """Return the node at a place."""
    return at(term.arg(place[0]), place[1:]) if place else term


def rewritten(term: z3.ExprRef, change: Change) -> z3.ExprRef:
    """Return the term with the change made."""
    return _put(term, change.place, change.rewrite(at(term, change.place)))


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


def changes(term: z3.ExprRef, leaves: Sequence[z3.ExprRef]) -> Iterator[Change]:
    """Yield every change of the term, from the top down."""
    words = {leaf.get_id() for leaf in leaves}
    yield from _of(term, (), words)


def _of(term: z3.ExprRef, place: tuple[int, ...], words: set[int]) -> Iterator[Change]:
    known = term.get_id() in words
    if z3.is_bool(term):
        yield Change(place, f"the opposite of {_text(term)}", _negated)
        yield Change(place, f"true for {_text(term)}", lambda _: z3.BoolVal(True))
        yield Change(place, f"false for {_text(term)}", lambda _: z3.BoolVal(False))
    if known or not z3.is_app(term):
        return
    yield from _at_node(term, place)
    for index, child in enumerate(term.children()):
        yield from _of(child, (*place, index), words)


def _at_node(term: z3.ExprRef, place: tuple[int, ...]) -> Iterator[Change]:
    children = term.children()
    if (z3.is_and(term) or z3.is_or(term)) and len(children) > 1:
        word = "or" if z3.is_and(term) else "and"
        yield Change(place, f"{word} for the connective of {_text(term)}", _swapped)
    for name, compare in _COMPARISONS.get(term.decl().kind(), ()) if children and z3.is_int(children[0]) else ():
        yield Change(place, f"{name} in {_text(term)}", _comparing(compare))
    if term.decl().kind() == z3.Z3_OP_MOD:
        yield Change(place, f"operands swapped in {_text(term)}", lambda node: node.arg(1) % node.arg(0))
        yield Change(place, f"only the dividend of {_text(term)}", lambda node: node.arg(0))
    if z3.is_int_value(term):
        for step in (-1, 1):
            yield Change(place, f"{term.as_long() + step} for {term}", _plus(step))


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
# What each comparison may become; its negation is made anyway.
_COMPARISONS = {
    z3.Z3_OP_LT: (_LESS_EQUAL, _EQUAL, _MORE),
    z3.Z3_OP_LE: (_LESS, _EQUAL, _MORE_EQUAL),
    z3.Z3_OP_GT: (_MORE_EQUAL, _EQUAL, _LESS),
    z3.Z3_OP_GE: (_MORE, _EQUAL, _LESS_EQUAL),
    z3.Z3_OP_EQ: (_LESS_EQUAL, _MORE_EQUAL),
    z3.Z3_OP_DISTINCT: (_LESS, _MORE),
}


def _text(term: z3.ExprRef) -> str:
    text = " ".join(term.sexpr().split())  # str(term) is fifty times slower
    return text if len(text) <= 70 else f"{text[:45]}...{text[-20:]}"
