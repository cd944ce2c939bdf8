"""Miniatures that answer every case, rightly or wrongly; they can also run in the kit's own process."""

from __future__ import annotations

from collections.abc import Callable

from tpinit.conformance.adapters.reference import adapter as resolver
from tpinit.conformance.dialects import permitted
from tpinit.conformance.protocol import Skip
from tpinit.conformance.vectors import Json

__all__ = [
    "MAGIC",
    "SpeaksAnything",
    "always_right",
    "always_wrong",
    "changes_its_input",
    "outcome_only",
    "permissive",
    "permissive_in_secret",
    "raises",
    "skips",
    "wrong_in_one_integer",
]

MAGIC = 65537
_CHOICES = ("row1-plain-data-parallel", "row5-creates-group")


def _named(name: str, **more: object) -> Callable[[Callable[[Json], Json]], Callable[[Json], Json]]:
    def mark(function: Callable[[Json], Json]) -> Callable[[Json], Json]:
        vars(function).update(implementation={"name": name, "version": "1.0"}, **more)
        return function

    return mark


@_named("always-right")
def always_right(case: Json) -> Json:
    """Answer as the contract does."""
    return resolver(case)


@_named("always-wrong")
def always_wrong(case: Json) -> Json:
    """Answer every case wrongly: another outcome than the contract's, and other violations."""
    answer = resolver(case)
    wrong = "no_autotp" if answer["outcome"] == "error" else "error"
    return {**answer, "outcome": wrong, "violations": [] if answer["violations"] else ["SIZE_MISSING"]}


@_named("wrong-in-one-integer")
def wrong_in_one_integer(case: Json) -> Json:
    """Answer rightly, except where the effective size is MAGIC: there give another dtype and row."""
    answer = resolver(case)
    if answer["tp_size"]["value"] == MAGIC:
        answer["dtype"] = {"value": None, "source": "unset"}
        answer["row"] = answer["row"] % 12 + 1
    return answer


def _permissive(case: Json) -> Json:
    answer = resolver(case)
    instead = permitted(_CHOICES, case, answer)
    return instead[0][1] if instead else answer


@_named("permissive", choices=_CHOICES)
def permissive(case: Json) -> Json:
    """Depart in rows 1 and 5, and declare both choices."""
    return _permissive(case)


@_named("permissive-in-secret")
def permissive_in_secret(case: Json) -> Json:
    """Depart in rows 1 and 5, and declare no choices."""
    return _permissive(case)


class SpeaksAnything:
    """An implementation that claims to speak any dialect, even one that does not exist."""

    implementation = {"name": "speaks-anything", "version": "1.0"}  # noqa: RUF012 # never written to

    def __call__(self, case: Json) -> Json:
        """Answer as the contract does."""
        return resolver(case)

    def speaks(self, dialect: str) -> bool:
        """Accept every dialect."""
        return bool(dialect)


@_named("outcome-only")
def outcome_only(case: Json) -> Json:
    """Answer the outcome only, rightly."""
    return {"outcome": resolver(case)["outcome"]}


@_named("skips")
def skips(case: Json) -> Json:
    """Skip every case."""
    raise Skip(f"a world of {case['world_size']} ranks is not supported")


@_named("raises")
def raises(case: Json) -> Json:
    """Raise AttributeError for a section without a dtype."""
    if case["section"] is not None:
        case["section"]["dtype"].lower()
    return resolver(case)


@_named("changes-its-input")
def changes_its_input(case: Json) -> Json:
    """Answer rightly, and remove a key of the caller's section (against D10)."""
    answer = resolver(case)
    if case["section"] is not None:
        case["section"].pop("tp_group")
    return answer
