"""Many ranks of a start in one process, through every combination of what their steps may do (contract 6.12).

The ranks run the generators that `initialize` runs. Each step of each rank asks `Choices` for its outcome, and
`explore` repeats the run until every combination of outcomes has been one. After each round all ranks must be at the
same exchange, or at their end; and they must end alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import AgreementError, PlanError
from tpinit.runtime.groups.agreement import RankReport, check_reports
from tpinit.runtime.groups.protocol import Exchange, Steps, agree
from tpinit.runtime.init.start import start
from tpinit.runtime.init.verify import probe_steps

# What a step may do on one rank: succeed, succeed with a value of its own, raise an error, end the process.
OUTCOMES = ("right", "other", "fails", "exits")


class BrokenProtocolError(AssertionError):
    """Ranks that are not at one exchange, or that end differently."""


class Choices:
    """Gives one outcome after another, and in the end each combination of them once.

    With `ordered`, of the combinations of one step that differ only in which rank has which outcome, one is given.
    """

    def __init__(self, ordered: bool = False) -> None:
        self._ordered = ordered
        self._last: dict[tuple[str, int], int] = {}  # of the rank before, in a step
        self._taken: list[list[int]] = []
        self._next = 0

    def pick(self, options: Sequence[str], place: tuple[str, int]) -> str:
        """Return one of the options, at a place: the first one where this run comes further than the last."""
        first = self._last.get(place, 0) if self._ordered else 0
        chosen = options[first:][self._index(len(options) - first)]
        self._last[place] = options.index(chosen)
        return chosen

    def _index(self, options: int) -> int:
        if self._next == len(self._taken):
            self._taken.append([0, options])
        index, count = self._taken[self._next]
        assert count == options
        self._next += 1
        return index

    def advance(self) -> bool:
        """Go to the next combination; return whether there is one."""
        del self._taken[self._next :]
        self._next = 0
        self._last.clear()
        while self._taken and self._taken[-1][0] + 1 == self._taken[-1][1]:
            self._taken.pop()
        if self._taken:
            self._taken[-1][0] += 1
        return bool(self._taken)


@dataclass
class ScriptedRank:
    """The steps of one rank, as `choices` decides. `picked` are the outcomes of the steps it came to."""

    number: int
    choices: Choices
    variants_tried: int = 1
    picked: list[tuple[str, str]] = field(default_factory=list)

    def outcome(self, step: str, options: Sequence[str] = OUTCOMES) -> str:
        chosen = self.choices.pick(options, (step, len(self.picked)))
        self.picked.append((step, chosen))
        return chosen

    def do(self, step: str, report: RankReport | None) -> None:
        """Do one step. Without a report it has no value that could differ."""
        outcome = self.outcome(step, OUTCOMES if report is not None else ("right", "fails", "exits"))
        if outcome == "fails":
            raise TpinitError(f"{step} failed")
        if outcome == "exits":
            raise SystemExit(3)
        if outcome == "other" and report is not None:
            report.fields[step] = self.number

    # --- RankSteps

    def choose_device(self) -> Steps[None]:
        yield from agree("devices", lambda report: self.do("devices", report))

    def prepare(self, report: RankReport) -> None:
        self.do("prepare", report)

    def lay_out(self, reports: Sequence[RankReport]) -> None:
        assert len({len(report.fields) for report in reports}) == 1

    def make_groups(self) -> None:
        self.do("groups", None)

    def probe(self) -> Steps[None]:
        yield from probe_steps(self, "auto")  # type: ignore[arg-type]  # the methods that it calls are here

    def shard(self, report: RankReport) -> None:
        self.do("shard", report)

    def check_shards(self, reports: Sequence[RankReport]) -> None:
        check_reports(reports)

    def build(self) -> str:
        self.do("engine", None)
        return "started"

    # --- Probe

    def variants(self) -> Sequence[str]:
        return ("the small batch", "a larger batch")[: self.variants_tried]

    def reason(self) -> str | None:
        return self._told("probe: reason", ("no", "unknown code", "fails"))

    def run_whole(self, variant: str, dtype: Any) -> str | None:
        return self._told("probe: unsharded model", ("no", "can't be run"))

    def compare(self) -> str | None:
        return self._told("probe: sharded model", ("no", "differs"))

    def _told(self, step: str, options: Sequence[str]) -> str | None:
        outcome = self.outcome(step, options)
        if outcome == "fails":
            raise TpinitError(f"{step} failed")
        return outcome if outcome != "no" else None


Start = Callable[[ScriptedRank], Steps[Any]]


def explore(
    size: int, start_of: Start = start, variants: int = 1, ordered: bool = False
) -> Iterator[tuple[list[ScriptedRank], list[str], Any]]:
    """Run every combination; yield the ranks, the exchanges they came to, and "started" or their common error.

    With `ordered`, combinations that differ only in which rank did what in a step are run once.

    Raises BrokenProtocolError for ranks that do not meet, or end differently.
    """
    choices = Choices(ordered)
    while True:
        ranks = [ScriptedRank(number, choices, variants) for number in range(size)]
        exchanges, ends = _run([start_of(rank) for rank in ranks])
        yield ranks, exchanges, _common_end(ranks, ends)
        if not choices.advance():
            return


def _run(started: Sequence[Steps[Any]]) -> tuple[list[str], list[Any]]:
    """Run ranks in lockstep until they end; return the exchanges, and what each rank returned or raised."""
    exchanges: list[str] = []
    sent: list[Any] = [None] * len(started)
    while True:
        met = [_next(steps, reports) for steps, reports in zip(started, sent, strict=True)]
        at = {one.step for one in met if isinstance(one, Exchange)}
        if not at:
            return exchanges, met
        if len(at) > 1 or not all(isinstance(one, Exchange) for one in met):
            raise BrokenProtocolError(f"after {exchanges}, the ranks are at {met}")
        exchanges.append(at.pop())
        reports = [one.report for one in met]
        equal = all(report == reports[0] for report in reports)
        sent = [[reports[0]] * len(started) if equal else reports] * len(started)


def _next(steps: Steps[Any], reports: Any) -> Any:
    """Return the next exchange of one rank, or what it returned or raised."""
    try:
        return steps.send(reports)
    except StopIteration as end:
        return end.value
    except BaseException as error:
        return error


def _common_end(ranks: Sequence[ScriptedRank], ends: Sequence[Any]) -> Any:
    shown = {(type(end).__name__, str(end)) for end in ends}
    if len(shown) > 1:
        raise BrokenProtocolError(f"ranks end differently: {shown}; {[rank.picked for rank in ranks]}")
    return ends[0]


def is_legal(ranks: Sequence[ScriptedRank], end: Any) -> bool:
    """Return whether the end is the one that these outcomes must have."""
    last = {rank.picked[-1] for rank in ranks}
    outcomes = {outcome for _, outcome in last}
    if end == "started":
        return outcomes == {"right"}
    if isinstance(end, PlanError):
        return ("probe: sharded model", "differs") in {one for rank in ranks for one in rank.picked}
    if isinstance(end, AgreementError):
        return len(outcomes) > 1 or outcomes == {"other"}
    return len(outcomes) == 1 and isinstance(end, {"fails": TpinitError, "exits": SystemExit}[outcomes.pop()])
