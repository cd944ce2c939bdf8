"""The dialects that an implementation can be tested against, and the named departures that it may declare.

`documented` is the contract. A permissive choice is a deliberate departure that an implementation declares in its reply
to `start`; an answer that a choice permits counts as permitted, never as agreed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tpinit.conformance.protocol import Case
from tpinit.spec.vocabulary import DType, Outcome, Source, ViolationCode

__all__ = ["CHOICES", "DIALECTS", "Choice", "permitted"]

DIALECTS: dict[str, str] = {"documented": "the contract, all twelve rows and every violation"}

ExpectedAnswer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """A named departure. `instead(case, expected)` returns the answer that it permits, or None if it has none."""

    name: str
    summary: str
    instead: Callable[[Case, ExpectedAnswer], dict[str, Any] | None]


def _row1_plain_data_parallel(case: Case, expected: ExpectedAnswer) -> dict[str, Any] | None:
    if expected["violations"] != [ViolationCode.NO_TP_INTENT.value]:
        return None
    # As in row 2, which has no AutoTP either: the model gets the precision, if one is given.
    precision = case["precision"]
    dtype = {"value": precision, "source": (Source.PRECISION if precision else Source.UNSET).value}
    return {**expected, "outcome": Outcome.NO_AUTOTP.value, "violations": [], "dtype": dtype}


def _row5_creates_group(case: Case, expected: ExpectedAnswer) -> dict[str, Any] | None:
    codes = list(expected["violations"])
    if ViolationCode.NO_GROUP_SOURCE.value not in codes or case["mesh"] is not None:
        return None
    size, world, precision = case["call"]["tp_size"], case["world_size"], case["precision"]
    codes.remove(ViolationCode.NO_GROUP_SOURCE.value)
    if size >= 1 and world % size:
        codes.append(ViolationCode.SIZE_NOT_DIVIDING_WORLD.value)  # the last in canonical order
    if codes:
        return {**expected, "violations": codes}
    dtype = DType(precision or case["call"]["dtype"])
    return {
        **expected,
        "outcome": Outcome.INIT_FROM_CALL.value,
        "violations": [],
        "tp_size": {"value": size, "source": Source.CALL_TP_SIZE.value},
        "dtype": {"value": dtype.value, "source": (Source.PRECISION if precision else Source.CALL_DTYPE).value},
        "tp_group": {"value": None, "source": Source.CREATED.value},
    }


CHOICES: dict[str, Choice] = {
    choice.name: choice
    for choice in (
        Choice(
            "row1-plain-data-parallel",
            "without a call, a section and an mpu it trains data parallel, where the contract has NO_TP_INTENT",
            _row1_plain_data_parallel,
        ),
        Choice(
            "row5-creates-group",
            "for a call alone, without a mesh, it creates a group, where the contract has NO_GROUP_SOURCE",
            _row5_creates_group,
        ),
    )
}


def permitted(names: tuple[str, ...], case: Case, expected: ExpectedAnswer) -> list[tuple[str, dict[str, Any]]]:
    """Return the answers that the named choices permit instead of the expected one, as pairs (choice, answer)."""
    answers = ((name, CHOICES[name].instead(case, expected)) for name in names)
    return [(name, answer) for name, answer in answers if answer is not None]
