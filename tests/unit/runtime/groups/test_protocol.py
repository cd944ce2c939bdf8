"""One step of the protocol on one rank, driven by hand: what it reports, and how it ends for what it is sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch.distributed as dist
from tpinit.runtime.errors import AgreementError
from tpinit.runtime.groups.agreement import RankReport, gather_reports
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.groups.protocol import Exchange, Steps, agree, run, tell

from support.thread_ranks import over_ranks


def ends(steps: Steps[Any], send: Callable[[RankReport], list[RankReport]]) -> tuple[Exchange, Any]:
    """Return the one exchange of a step, and what the step returns."""
    exchange = next(steps)
    with pytest.raises(StopIteration) as end:
        steps.send(send(exchange.report))
    return exchange, end.value.value


def fails(report: RankReport) -> None:
    report.fields["before"] = 1
    raise SystemExit(3)


def test_a_step_returns_its_result_and_all_reports() -> None:
    other = RankReport({"a": 1})

    def work(report: RankReport) -> str:
        report.fields["a"] = 1
        return "result"

    exchange, (result, reports) = ends(agree("a step", work), lambda report: [report, other])
    assert (exchange.step, exchange.report.fields, exchange.report.error) == ("a step", {"a": 1}, None)
    assert result == "result"
    assert reports == [exchange.report, other]


def test_a_step_that_fails_comes_to_its_exchange_and_raises_its_own_error() -> None:
    steps = agree("a step", fails, describe=lambda error: f"described {error}")
    exchange = next(steps)
    assert (exchange.report.fields, exchange.report.error) == ({"before": 1}, "described 3")
    with pytest.raises(SystemExit) as ended:
        steps.send([exchange.report] * 2)
    assert ended.value.code == 3


@pytest.mark.parametrize("own_failure", [False, True])
def test_where_ranks_differ_all_raise_the_difference_with_their_own_error_as_its_cause(own_failure: bool) -> None:
    steps = agree("a step", fails if own_failure else lambda report: report.fields.update(before=2))
    exchange = next(steps)
    with pytest.raises(AgreementError) as raised:
        steps.send([exchange.report, RankReport({"before": 1}, error=None if own_failure else "E")])
    assert isinstance(raised.value.__cause__, SystemExit) is own_failure


def test_a_check_and_a_gather_of_its_own() -> None:
    seen: list[Sequence[RankReport]] = []
    gathered = [RankReport({"a": 1}), RankReport({"a": 2})]
    assert run(agree("s", lambda _: 5, seen.append, lambda _: gathered)) == (5, gathered)
    assert seen == [gathered]


def test_the_cause_of_a_difference_stays() -> None:
    def differ(_: Sequence[RankReport]) -> None:
        raise AgreementError("they differ") from KeyError("cause")

    steps = agree("a step", lambda _: None, differ)
    exchange = next(steps)
    with pytest.raises(AgreementError) as raised:
        steps.send([exchange.report])
    assert isinstance(raised.value.__cause__, KeyError)


def test_reports_are_gathered_over_the_world_and_the_step_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    gather = next(agree("a step", lambda _: None)).gather
    assert isinstance(gather, partial)
    assert (gather.func, gather.keywords) == (gather_reports, {"name": 'the reports after "a step"'})
    caplog.set_level(logging.DEBUG, logger="tpinit.protocol")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert run(agree("a step", lambda _: 5)) == (5, [RankReport()])
    finally:
        dist.destroy_process_group()
    assert caplog.messages == ["a step"]


def test_run_gathers_each_exchange_and_returns_the_end() -> None:
    def steps(view: GroupView) -> Steps[list[str | None]]:
        first, _ = yield from agree("one", lambda _: view.position, gather=lambda r: gather_reports(r, view.group))
        return [str(first)]

    assert over_ranks(2, lambda view: run(steps(view))) == [["0"], ["1"]]


def test_texts_may_differ_and_are_told_in_order_of_the_ranks() -> None:
    others = [RankReport(replica={"text": "theirs"}), RankReport(replica={"text": None})]
    exchange, texts = ends(tell("why", lambda: "mine"), lambda report: [report, *others])
    assert exchange.step == "why"
    assert texts == ["mine", "theirs", None]
    _, texts = ends(tell("why", lambda: None), lambda report: [report, others[0]])
    assert texts == [None, "theirs"]
