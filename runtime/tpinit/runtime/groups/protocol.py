"""Steps that every rank does alone, each followed by an exchange in which all ranks learn what came of it.

A start (`initialize`) is a generator of such steps. It yields an `Exchange` where the ranks meet; `run` sends the
reports of all ranks into it. A step that fails on one rank, however it fails, still comes to its exchange, and then
all ranks raise: none waits for a rank that has left (contract 6.12). Nothing but `run` communicates between steps, so
a test can drive the same generators as many ranks of one process, through every combination of failures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tpinit.runtime.groups.agreement import RankReport, check_reports, describe_error, gather_reports

__all__ = ["Exchange", "Gather", "Steps", "agree", "run", "tell"]

T = TypeVar("T")
Gather = Callable[[RankReport], list[RankReport]]

_log = logging.getLogger("tpinit.protocol")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A point where every rank of the world gives its report of one step and gets those of all, in rank order."""

    step: str
    report: RankReport
    gather: Gather


Steps = Generator[Exchange, list[RankReport], T]


def agree(
    step: str,
    work: Callable[[RankReport], T],
    check: Callable[[Sequence[RankReport]], None] = check_reports,
    gather: Gather | None = None,
    describe: Callable[[BaseException], str] = describe_error,
) -> Steps[tuple[T, list[RankReport]]]:
    """Do one step on this rank; return what `work` returned and the reports of all ranks.

    `work` adds to its report what must be equal. `check` raises, on all ranks alike, if reports or errors differ. If
    all ranks failed alike and it raises nothing, each raises its own error. An interrupt and an exit of the process are
    failures too: they are reported, as the text of `describe`, before they are raised.
    """
    report = RankReport()
    result: list[T] = []
    failure: BaseException | None = None
    try:
        result.append(work(report))
    except BaseException as error:  # whatever it is, the other ranks wait for this rank's report
        failure = error
        report.error = describe(error)
    reports = yield Exchange(step, report, gather or partial(gather_reports, name=f'the reports after "{step}"'))
    try:
        check(reports)
    except Exception as difference:
        if failure is None:
            raise
        raise difference from failure
    if failure is not None:
        raise failure
    return result.pop(), reports


def tell(step: str, work: Callable[[], str | None]) -> Steps[list[str | None]]:
    """Return the text, or None, that `work` gave on every rank, in rank order. The texts of ranks may differ.

    If `work` raises on some rank, all ranks raise, as after `agree`.
    """

    def told(report: RankReport) -> None:
        report.replica["text"] = work()

    _, reports = yield from agree(step, told)
    found = [report.replica["text"] for report in reports]
    return [str(text) if text is not None else None for text in found]


def run(steps: Steps[T]) -> T:
    """Run the steps of this rank, with the collectives between them. Every rank of the world must call this.

    Raises what the steps raise, and CollectiveError if a rank does not come to an exchange within the time-out.
    """
    try:
        exchange = next(steps)
        while True:
            _log.debug("%s", exchange.step)
            exchange = steps.send(exchange.gather(exchange.report))
    except StopIteration as end:
        result: T = end.value
        return result
