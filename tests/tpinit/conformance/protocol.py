"""What the kit and an implementation say to each other, and what may be said.

One JSON object a line, over stdio, one answer to each request::

    {"cmd": "start", "version": 1}           {"version": 1, "implementation": {"name", "version", "language"},
                                              "dialects": ["documented"], "choices": []}
    {"cmd": "dialect", "dialect": NAME}      {"ok": true} or {"ok": false}
    {"cmd": "run", "seq": N, "case": CASE}   {"seq": N, "result": RESULT} (and "observed": {...} inside the result)
                                             {"seq": N, "skipped": true, "reason": TEXT}
                                             {"seq": N, "errored": true, "message": TEXT}
    {"cmd": "stop"}                          the process ends

CASE is the input of a vector and nothing else of it. RESULT has the shape of what a vector expects: `outcome` must be
there, and whatever else an implementation cannot tell it leaves out; the report counts what was answered apart from
what agreed. In a world of ranks `start` also has "rank" and "world_size", and `run` has "ranks": the ranks of each
group handle, for each group of that kind in the world.

Both directions are validated, in `messages`.
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

# Keys of "observed" that the kit understands: each must be absent, false or empty, else the contract is broken.
FAULTS: dict[str, str] = {
    "input_changed": "the caller's input was changed (D10)",
    "ranks_disagree": "the ranks of one world gave different answers",
}


class Skip(Exception):  # raised to say something, not because anything went wrong
    """Raised by an in-process implementation for a case that it can't be asked; the text is the reason."""


class Broken(Exception):
    """The implementation can't be talked to: it does not start, or breaks the protocol outside of any case."""


class KitError(Exception):
    """The kit itself is wrong: a vector that is malformed or contradicts the contract, or a bug in the kit."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """Who answers: what `start` said. `isolated` is the adapter's word that no two cases share a process."""

    name: str
    version: str
    language: str
    dialects: tuple[str, ...] = ("documented",)
    choices: tuple[str, ...] = ()
    isolated: bool = False


@dataclass(frozen=True, slots=True)
class RankContext:
    """Where in a world of real processes a case is asked: my rank, and the ranks of each group handle.

    `ranks` has for a handle all groups of that kind, which tile the world: `{"g1": ((0, 1), (2, 3))}`; mine is the
    one that holds `rank`. Different handles are different objects, also where their ranks are the same.
    """

    rank: int
    world_size: int
    ranks: Mapping[str, tuple[tuple[int, ...], ...]]


@dataclass(frozen=True, slots=True)
class Result:
    """An answer in the shape of what a vector expects, perhaps without some of its fields.

    `observed` is evidence, in any JSON shape; its keys in `FAULTS` count against the implementation.
    """

    answer: Mapping[str, Any]
    observed: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Skipped:
    """The implementation can't be asked this, and says why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Errored:
    """The implementation failed to answer and says so. An error that it was to decide on is a Result."""

    message: str
    detail: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Crashed:
    """The process of the implementation ended in the middle of a case; `detail` is the end of its stderr."""

    message: str
    detail: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TimedOut:
    """No answer in time. The process is gone: the next case gets a new one."""

    message: str
    detail: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Garbage:
    """An answer that is none: not JSON, not of the protocol, to another case, or more than one."""

    message: str
    detail: str = field(default="", compare=False)


Answer: TypeAlias = "Result | Skipped | Errored | Crashed | TimedOut | Garbage"


class Adapter(Protocol):
    """An implementation as the runner sees it.

    `start` raises Broken where there is nobody to talk to. `run` never raises for what an implementation does: it
    returns the matching Answer, within about `timeout` seconds, and leaves the adapter fit for the next case.
    `stop` ends what was started, whatever state it is in, and may be called twice; it raises Broken where the
    implementation said more than it was asked.
    """

    def start(self) -> Implementation:
        """Begin, and say who answers."""
        ...

    def dialect(self, name: str) -> bool:
        """Ask for a dialect; True where the implementation speaks it."""
        ...

    def run(self, case: Case, timeout: float) -> Answer:
        """Ask one case. The adapter gets a copy of its own."""
        ...

    def stop(self) -> None:
        """End."""
        ...


_KINDS: dict[type, str] = {
    Skipped: "skipped",
    Errored: "errored",
    Crashed: "crashed",
    TimedOut: "timed_out",
    Garbage: "garbage",
}


def answer_to_json(answer: Answer) -> dict[str, Any]:
    """Return an answer as plain data that is equal for equal answers: without `observed` but for its faults."""
    if isinstance(answer, Result):
        faults = {name: answer.observed[name] for name in FAULTS if answer.observed.get(name)}
        return {"result": dict(answer.answer), **faults}
    text = answer.reason if isinstance(answer, Skipped) else answer.message
    return {_KINDS[type(answer)]: text}
