"""The protocol of a start, exhaustively: whatever fails or differs on whichever ranks, all ranks meet and end alike."""

import pytest
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import AgreementError, PlanError
from tpinit.runtime.groups.agreement import RankReport, check_reports
from tpinit.runtime.groups.protocol import Exchange, agree
from tpinit.runtime.init.start import start
from tpinit.runtime.init.verify import probe_steps

from support.lockstep import BrokenProtocolError, ScriptedRank, explore

STEPS = ["devices", "prepare", "groups", "probe: reason", "shard", "engine"]


def is_legal(ranks, end):
    """Return whether the end is the one that these outcomes must have."""
    last = {rank.picked[-1] for rank in ranks}
    outcomes = {outcome for _, outcome in last}
    if end == "started":
        # "other" on every rank is one value more on each; they still differ. A probe may end without a comparison.
        return outcomes == {"right"}
    if isinstance(end, PlanError):
        return ("probe: sharded model", "differs") in {one for rank in ranks for one in rank.picked}
    if isinstance(end, AgreementError):
        return len(outcomes) > 1 or outcomes == {"other"}
    return len(outcomes) == 1 and isinstance(end, {"fails": TpinitError, "exits": SystemExit}[outcomes.pop()])


@pytest.mark.parametrize(("size", "variants", "least"), [(1, 2, 50), (2, 2, 1000), (3, 1, 5000)])
def test_all_ranks_come_to_the_same_exchanges_and_end_alike(size, variants, least):
    count, ends = 0, set()
    for ranks, exchanges, end in explore(size, variants=variants):
        count += 1
        assert is_legal(ranks, end), ([rank.picked for rank in ranks], end)
        if end == "started":
            assert [step for step in exchanges if not step.startswith("probe") or step == STEPS[3]] == STEPS
        ends.add(type(end).__name__)
    assert count > least
    assert ends >= {"str", "PlanError", "TpinitError", "SystemExit"} | ({"AgreementError"} if size > 1 else set())


# --- controls: protocols that are broken, each in its own way ------------------------------------------------


def catches_errors_only(rank):
    """An exit of the process is not reported."""

    def choose(report):
        try:
            rank.do("devices", report)
        except TpinitError as error:
            report.error = str(error)

    report = RankReport()
    choose(report)
    reports = yield Exchange("devices", report, None)
    check_reports(reports)
    if report.error is not None:
        raise TpinitError(report.error)


def checks_before_the_first_exchange(rank):
    rank.do("arguments", None)
    return (yield from start(rank))


def decides_alone_whether_to_probe(rank):
    class Alone(ScriptedRank):
        def probe(self):
            if self.reason() is not None:
                yield from probe_steps(self, "auto")

    rank.__class__ = Alone
    return (yield from start(rank))


def lays_out_by_what_this_rank_has(rank):
    class Own(ScriptedRank):
        def lay_out(self, reports):
            if self.outcome("lay out", ("right", "fails")) == "fails":
                raise TpinitError("the groups do not fit")

    rank.__class__ = Own
    return (yield from start(rank))


def ends_without_a_last_exchange(rank):
    yield from agree("shard", rank.shard)
    return rank.build()


def ignores_what_differs(rank):
    yield from agree("prepare", rank.prepare, lambda reports: None)
    return "started"


@pytest.mark.parametrize(
    "broken",
    [
        catches_errors_only,
        checks_before_the_first_exchange,
        decides_alone_whether_to_probe,
        lays_out_by_what_this_rank_has,
        ends_without_a_last_exchange,
        ignores_what_differs,
    ],
)
def test_a_broken_protocol_is_found(broken):
    with pytest.raises(BrokenProtocolError):
        for _ in explore(2, broken):
            pass
