"""The protocol of a start, exhaustively: whatever fails or differs on whichever ranks, all ranks meet and end alike."""

import logging
import os

import pytest
from tpinit.reference.errors import TpinitError
from tpinit.runtime.errors import AgreementError
from tpinit.runtime.groups.agreement import RankReport, check_reports
from tpinit.runtime.groups.protocol import Exchange, agree
from tpinit.runtime.init.start import start
from tpinit.runtime.init.verify import probe_steps

from support.lockstep import BrokenProtocolError, ScriptedRank, explore, is_legal

STEPS = ["devices", "prepare", "groups", "probe: reason", "shard", "engine"]


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Write no line for each of thousands of runs."""
    caplog.set_level(logging.CRITICAL, logger="tpinit")


# Of four ranks those that differ in the order of the ranks only are one; `make test-starts` runs each.
WORLDS = [(1, 2, False, 298), (2, 2, False, 2569), (3, 1, False, 10397), (4, 2, True, 10513)]
if "TPINIT_TEST_STARTS" in os.environ:
    WORLDS.append((4, 1, False, 163981))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("size", "variants", "ordered", "runs"), WORLDS)
def test_all_ranks_come_to_the_same_exchanges_and_end_alike(size, variants, ordered, runs):
    count, ends = 0, set()
    for ranks, exchanges, end in explore(size, variants=variants, ordered=ordered):
        count += 1
        assert is_legal(ranks, end), ([rank.picked for rank in ranks], end)
        if end == "started":
            assert [step for step in exchanges if not step.startswith("probe") or step == STEPS[3]] == STEPS
        ends.add(type(end).__name__)
    assert count == runs
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


def test_the_error_of_all_ranks_is_caused_by_that_of_this_rank():
    failure = OSError("the disk is full")

    def work(report):
        raise failure

    steps = agree("save", work, describe=lambda error: f"described: {error}")
    report = next(steps).report
    assert report.error == "described: the disk is full"
    with pytest.raises(AgreementError, match="rank 0: described: the disk is full") as raised:
        steps.send([report, RankReport()])
    assert raised.value.__cause__ is failure
