"""The language of axioms: `TPG implies TPI`, `mode = train and not (device in {cpu, tpu})`.

Precedence from loosest to tightest: iff; implies (right-associative); or; and; not; a condition. A Boolean
condition is an expression by itself; any condition can be compared (`=`, `!=`, `in {a, b}`) with its values or
with a condition that has the same values. Other names and values than plain words are quoted. Every error gives
its column.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tpinit.decision_tables.model import And, Condition, Const, Expr, Iff, Lit, Not, Or
from tpinit.reference.spellings import nearest, printable

__all__ = ["ExpressionError", "bool_value", "literal_text", "parse", "quoted", "value_index"]

MAX_LENGTH = 10_000
MAX_DEPTH = 60

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<symbol><=>|<->|=>|->|==|!=|&&|\|\||[=(){},!])
      | '(?P<single>[^']*)' | "(?P<double>[^"]*)"
      | (?P<word>(?:[\w.+]|-(?!>))+)
    )""",
    re.VERBOSE,
)
_SAME = {"<=>": "iff", "<->": "iff", "=>": "implies", "->": "implies", "==": "=", "&&": "and", "||": "or", "!": "not"}
_WORDS = frozenset({"iff", "implies", "or", "and", "not", "in", "true", "false"})
_BOOLS = {"y": 1, "yes": 1, "true": 1, "t": 1, "n": 0, "no": 0, "false": 0, "f": 0}


class ExpressionError(ValueError):
    """An axiom can't be parsed: the column (from 1), what is wrong there, and the fix."""

    def __init__(self, column: int, message: str, fix: str) -> None:
        self.column, self.message, self.fix = column, message, fix
        super().__init__(f"column {column}: {message}")


def bool_value(word: str) -> int | None:
    """Return 1 for a spelling of yes, 0 for a spelling of no, else None."""
    return _BOOLS.get(word.casefold())


def value_index(condition: Condition, word: str) -> int | None:
    """Return the index of the value of a condition that a word denotes, or None."""
    if condition.boolean:
        return bool_value(word)
    return condition.values.index(word) if word in condition.values else None


def quoted(text: str) -> str:
    """Return a name or a value as it is written in an expression: quoted unless it is a plain word."""
    if re.fullmatch(r"(?:[\w.+]|-(?!>))+", text) and text.casefold() not in _WORDS:
        return text
    return f'"{text}"' if '"' not in text else f"'{text}'"


def literal_text(condition: Condition, mask: int) -> str:
    """Return the text of the expression that the condition has one of the values of the mask."""
    name = quoted(condition.name)
    inside = [value for index, value in enumerate(condition.values) if mask >> index & 1]
    if condition.boolean and len(inside) == 1:
        return name if inside == ["Y"] else f"not {name}"
    if len(inside) == 1:
        return f"{name} = {quoted(inside[0])}"
    outside = [value for value in condition.values if value not in inside]
    if len(outside) == 1:
        return f"{name} != {quoted(outside[0])}"
    return f"{name} in {{{', '.join(map(quoted, inside))}}}"


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # the symbol or the keyword itself, "name" or "end"
    text: str
    column: int


def _tokens(text: str) -> list[_Token]:
    tokens, at, end = [], 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        start = at + len(text[at:]) - len(text[at:].lstrip())
        if match is None or match.lastgroup is None:
            letter = text[start]
            wrong = "has no closing quote" if letter in "'\"" else "does not belong in an axiom"
            raise ExpressionError(start + 1, f"{printable(letter)} {wrong}", "see 'tpinit check-table --help'")
        body = match[match.lastgroup]
        kind = "name"
        if match.lastgroup == "symbol":
            kind = _SAME.get(body, body)
        elif match.lastgroup == "word" and body.casefold() in _WORDS:
            kind = body.casefold()
        tokens.append(_Token(kind, body, start + 1))
        at = match.end()
    return [*tokens, _Token("end", "the end", end + 1)]


def parse(text: str, conditions: Sequence[Condition]) -> Expr:
    """Parse the text of an axiom. Raises ExpressionError at the first error."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(MAX_LENGTH, f"an axiom has at most {MAX_LENGTH} letters", "split it: all axioms hold")
    parser = _Parser(_tokens(text), {condition.name: i for i, condition in enumerate(conditions)}, conditions)
    expr = parser.iff()
    if parser.now.kind != "end":
        fix = "join the parts with and, or, implies or iff"
        words = ("and", "or", "implies", "iff", "in")
        close = nearest(parser.now.text, words) if parser.now.kind == "name" else None
        raise parser.error("an operator or the end was expected", f'write "{close}"' if close else fix)
    return expr


@dataclass(slots=True)
class _Parser:
    """Recursive descent parser with one method per level of precedence, loosest first."""

    tokens: list[_Token]
    places: dict[str, int]
    conditions: Sequence[Condition]
    at: int = 0
    depth: int = 0
    iffs: int = 0

    @property
    def now(self) -> _Token:
        return self.tokens[self.at]

    def error(self, message: str, fix: str) -> ExpressionError:
        given = "the text ends" if self.now.kind == "end" else f'"{printable(self.now.text)}"'
        return ExpressionError(self.now.column, f"{given}: {message}", fix)

    def take(self, kind: str) -> bool:
        found = self.now.kind == kind
        self.at += found
        return found

    def iff(self) -> Expr:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.error(f"an axiom nests at most {MAX_DEPTH} levels", "split it: all axioms hold")
        left = self.implies()
        while self.take("iff"):
            self.iffs += 1
            if self.iffs > MAX_DEPTH:
                raise self.error(f"an axiom has at most {MAX_DEPTH} iff", "split it: all axioms hold")
            left = Iff(left, self.implies())
        self.depth -= 1
        return left

    def implies(self) -> Expr:
        parts = [self.any()]
        while self.take("implies"):
            parts.append(self.any())
        # Right-associative: A implies (B implies C) is (not A or not B or C).
        return parts[0] if len(parts) == 1 else Or((*map(Not, parts[:-1]), parts[-1]))

    def any(self) -> Expr:
        parts = [self.all()]
        while self.take("or"):
            parts.append(self.all())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def all(self) -> Expr:
        parts = [self.negation()]
        while self.take("and"):
            parts.append(self.negation())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def negation(self) -> Expr:
        negative = False
        while self.take("not"):
            negative = not negative
        part = self.atom()
        return Not(part) if negative else part

    def atom(self) -> Expr:
        if self.take("("):
            inner = self.iff()
            if not self.take(")"):
                raise self.error("a closing parenthesis was expected", "write )")
            return inner
        if self.now.kind in ("true", "false"):
            self.at += 1
            return Const(self.tokens[self.at - 1].kind == "true")
        if self.now.kind != "name":
            raise self.error(
                "a condition was expected", f"write one of {self.names()}, quoted unless it is a plain word"
            )
        place = self.places.get(self.now.text)
        if place is None:
            close = nearest(self.now.text, self.places)
            fix = f'write "{close}"' if close else f"write one of {self.names()}"
            raise self.error("there is no such condition", fix)
        self.at += 1
        return self.comparison(place)

    def comparison(self, place: int) -> Expr:
        condition = self.conditions[place]
        if self.take("="):
            return self.equal(place)
        if self.take("!="):
            return Not(self.equal(place))
        if self.take("in"):
            return Lit(place, self.value_set(place))
        if condition.boolean:
            return Lit(place, 0b10)
        self.at -= 1
        example = literal_text(condition, 1)
        raise self.error("this condition is not Boolean and must be compared with a value", f"write {example}")

    def equal(self, place: int) -> Expr:
        """Parse the right side of a comparison: a value, else another condition with the same values."""
        other = self.places.get(self.now.text) if self.now.kind == "name" else None
        condition = self.conditions[place]
        if other is not None and value_index(condition, self.now.text) is None:
            if self.conditions[other].values != condition.values:
                raise self.error(
                    f"this condition does not have the same values as {condition.name}", "compare with a value"
                )
            self.at += 1
            return Or(
                tuple(And((Lit(place, 1 << v), Lit(other, 1 << v))) for v, _ in enumerate(condition.values)),
            )
        return Lit(place, 1 << self.value(place))

    def value_set(self, place: int) -> int:
        if not self.take("{"):
            raise self.error("a set of values was expected", "write in {a, b}")
        mask = 1 << self.value(place)
        while self.take(","):
            mask |= 1 << self.value(place)
        if not self.take("}"):
            raise self.error("a comma or a closing brace was expected", "write in {a, b}")
        return mask

    def value(self, place: int) -> int:
        condition = self.conditions[place]
        word = self.now
        found = value_index(condition, word.text) if word.kind in ("name", *_WORDS) else None
        if found is None:
            close = nearest(word.text, condition.values)
            legal = ", ".join(map(printable, condition.values[:12]))
            fix = f'write "{close}"' if close else f"write one of {legal}"
            raise self.error(f"{condition.name} has no such value", fix)
        self.at += 1
        return found

    def names(self) -> str:
        names = [printable(name) for name in self.places]
        return ", ".join(names if len(names) <= 8 else [*names[:8], "..."])
