"""An implementation in the kit's own process: a callable that takes a case and returns a result.

It is fast and easy to debug, but a crash of the implementation ends the kit too. `tpinit.conformance.server` runs the
same callable in a process of its own.
"""

from __future__ import annotations

import platform
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tpinit.conformance.dialects import CHOICES
from tpinit.conformance.messages import read_answer, read_implementation
from tpinit.conformance.protocol import (
    VERSION,
    Answer,
    Case,
    Crashed,
    Errored,
    Garbage,
    Implementation,
    Result,
    Skip,
    Skipped,
    TimedOut,
)

__all__ = ["CallableAdapter", "plain"]


_ATOMS = frozenset({int, str, bool, float, type(None)})


def plain(value: Any) -> Any:
    """Return a deep copy of plain data (dicts, lists, scalars) as exact builtin types. Raises TypeError for others."""
    kind = type(value)
    if kind in _ATOMS:  # the most frequent types come first
        return value
    if kind is dict:
        return {plain(key): item if type(item) in _ATOMS else plain(item) for key, item in value.items()}
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, str):
        return str.__str__(value)  # the value of an enum that is a str
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} is not plain data")


class _Late(BaseException):
    """The time limit of a case has passed; not an Exception, so that an implementation does not catch it."""


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise _Late in the block after `seconds`; only the main thread can be interrupted, others have no limit."""
    owner, _ = signal.getitimer(signal.ITIMER_REAL)
    if threading.current_thread() is not threading.main_thread() or 0 < owner <= seconds:
        yield  # another alarm is already set and due earlier: leave it as it is
        return

    def late(*_: object) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    begun = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # repeated each second, in case the exception is swallowed
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if owner:
            signal.setitimer(signal.ITIMER_REAL, max(owner - (time.monotonic() - begun), 0.001))


class CallableAdapter:
    """Calls `answer(case) -> result`, which may raise `Skip(reason)`; any other exception counts as an error.

    Optional attributes of the callable describe it: `implementation`, a dict with name, version and language;
    `dialects` and `choices`, lists of names; `speaks(dialect) -> bool`.
    """

    def __init__(self, answer: Callable[..., Any], *more: Any) -> None:
        """`more` are further arguments of the callable after the case (in a world of ranks: the `RankContext`)."""
        self.answer = answer
        self.more = more

    def start(self) -> Implementation:
        """Return the implementation. Raises Broken if the attributes of the callable are malformed."""
        name = getattr(self.answer, "__qualname__", type(self.answer).__qualname__)
        who = {"name": name, "version": "0", "language": f"Python {platform.python_version()}"}
        given = getattr(self.answer, "implementation", {})
        reply = {
            "version": VERSION,
            "implementation": {**who, **given} if isinstance(given, Mapping) else given,
            "dialects": getattr(self.answer, "dialects", ["documented"]),
            "choices": getattr(self.answer, "choices", []),
        }
        return read_implementation({key: _listed(value) for key, value in reply.items()}, tuple(CHOICES))

    def dialect(self, name: str) -> bool:
        """Return whether the callable's `speaks` or, without it, its `dialects` accept this dialect."""
        speaks = getattr(self.answer, "speaks", None)
        return bool(speaks(name)) if speaks is not None else name in getattr(self.answer, "dialects", ["documented"])

    def run(self, case: Case, timeout: float) -> Answer:
        """Ask one case; the time limit interrupts Python code in the main thread only."""
        copy = plain(case)
        try:
            with _within(timeout):
                answer = self._answer(copy, case)
        except _Late:
            return TimedOut(f"no answer in {timeout:g} s")
        if isinstance(answer, Result) and copy != case:
            return Result(answer.answer, {**answer.observed, "input_changed": True})
        return answer

    def _answer(self, copy: dict[str, Any], case: Case) -> Answer:
        try:
            reply = self.answer(copy, *self.more)
        except Skip as reason:
            return Skipped(str(reason))
        except SystemExit as end:
            return Crashed(f"it ended the process with {end.code!r}")
        except Exception as error:
            return Errored(f"{type(error).__name__}: {error}", "".join(traceback.format_exc()[-2000:]))
        try:
            return read_answer({"seq": 0, "result": plain(reply)}, 0, case)
        except (TypeError, RecursionError) as error:
            return Garbage(f"the result is not plain data: {error}")

    def stop(self) -> None:
        """Do nothing: no process was started."""


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
