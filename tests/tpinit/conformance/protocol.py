"""The protocol between the kit and an implementation, and the types that the kit keeps of it.

One JSON object per line over stdio, one reply to each request::

    {"cmd": "start", "version": 1}           {"version": 1, "implementation": {"name", "version", "language"},
                                              "dialects": ["documented"], "choices": []}
    {"cmd": "dialect", "dialect": NAME}      {"ok": true} or {"ok": false}
    {"cmd": "run", "seq": N, "case": CASE}   {"seq": N, "result": RESULT} (and "observed": {...} inside the result)
                                             {"seq": N, "skipped": true, "reason": TEXT}
                                             {"seq": N, "errored": true, "message": TEXT}
    {"cmd": "stop"}                          the process ends

CASE is the input of a vector, without its expected answer. RESULT has the shape of an expected answer: `outcome` is
required, and an implementation leaves out every other field that it cannot give; the report counts answered and agreed
fields separately. In a world of ranks `start` also has "rank" and "world_size", and `run` has "ranks": for each group
handle the ranks of every group of that kind in the world.

`messages` validates both directions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

__all__ = [
    "FAULTS",
    "VERSION",
    "Adapter",
    "Answer",
    "Broken",
    "Case",
    "Crashed",
    "Errored",
    "Garbage",
    "Implementation",
    "KitError",
    "RankContext",
    "Result",
    "Skip",
    "Skipped",
    "TimedOut",
    "answer_to_json",
]

VERSION = 1

Case: TypeAlias = "Mapping[str, Any]"

# Keys of "observed" that the kit reads: each must be absent, false or empty; otherwise the answer is wrong.
FAULTS: dict[str, str] = {
    "input_changed": "the caller's input was changed (D10)",
    "ranks_disagree": "the ranks of one world gave different answers",
}


class Skip(Exception):  # a signal, not an error
    """Raised by an in-process implementation for a case that it does not support; the text is the reason."""


class Broken(Exception):
    """The implementation does not start, or violates the protocol outside of a case."""


class KitError(Exception):
    """The kit itself is wrong: a vector that is malformed or contradicts the contract, or a bug in the kit."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """The implementation under test, from its reply to `start`. `isolated`: no two cases share a process."""

    name: str
    version: str
    language: str
    dialects: tuple[str, ...] = ("documented",)
    choices: tuple[str, ...] = ()
    isolated: bool = False


@dataclass(frozen=True, slots=True)
class RankContext:
    """One rank of a world of real processes: its number, the world size, and the ranks of each group handle.

    `ranks` maps a handle to all groups of that kind, which tile the world: `{"g1": ((0, 1), (2, 3))}`; this rank's
    group is the one that contains `rank`. Different handles are different objects, even with the same ranks.
    """

    rank: int
    world_size: int
    ranks: Mapping[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True, slots=True)
class Result:
    """An answer in the shape of a vector's expected answer; fields other than `outcome` may be missing.

    `observed` is evidence in any JSON shape; a key of `FAULTS` in it makes the answer wrong.
    """

    answer: Mapping[str, Any]
    observed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skipped:
    """The implementation does not support the case; `reason` says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Errored:
    """The implementation reports that it failed to answer. An error that the contract requires is a Result."""

    message: str
    detail: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process of the implementation ended in the middle of a case; `detail` is the end of its stderr."""

    message: str
    detail: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TimedOut:
    """No answer within the time limit. The adapter has ended the process; the next case gets a new one."""

    message: str
    detail: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Garbage:
    """An invalid reply: not JSON, not a message of the protocol, for another case, or more than one line."""

    message: str
    detail: str = field(default="", compare=False)


Answer: TypeAlias = "Result | Skipped | Errored | Crashed | TimedOut | Garbage"


class Adapter(Protocol):
    """The interface through which the runner asks an implementation.

    `start` raises Broken if the implementation does not start. `run` returns an Answer within about `timeout` seconds,
    never raises for what the implementation does, and leaves the adapter ready for the next case. `stop` ends every
    process that was started, in any state, and may be called twice; it raises Broken if the implementation wrote more
    than its replies.
    """

    def start(self) -> Implementation:
        """Start the implementation and return its name, version and dialects."""
        ...

    def dialect(self, name: str) -> bool:
        """Return whether the implementation speaks this dialect."""
        ...

    def run(self, case: Case, timeout: float) -> Answer:
        """Ask one case. The caller passes a copy, which the adapter may change."""
        ...

    def stop(self) -> None:
        """End the implementation's processes."""
        ...


_KINDS: dict[type, str] = {
    Skipped: "skipped",
    Errored: "errored",
    Crashed: "crashed",
    TimedOut: "timed_out",
    Garbage: "garbage",
}


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as plain data, equal for equal answers: of `observed` it has the keys in FAULTS only."""
    if isinstance(answer, Result):
        faults = {name: answer.observed[name] for name in FAULTS if answer.observed.get(name)}
        return {"result": dict(answer.answer), **faults}
    text = answer.reason if isinstance(answer, Skipped) else answer.message
    return {_KINDS[type(answer)]: text}
