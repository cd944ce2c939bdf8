"""What is sent for the means of gradients, and when: every bucket once, as soon as the backward has its gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
import torch
from tpinit.runtime.groups.gradient_owners import GradientOwners
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.settings import Averaging
from tpinit.runtime.training import gradient_buckets
from tpinit.runtime.training.gradient_buckets import GradientBuckets
from tpinit.runtime.training.param_state import ParamState
from unit.runtime.training.test_averaging import CPU, SIZES, expected, gradient, states

from support.thread_ranks import over_ranks

T = TypeVar("T")
Sent = dict[int, list[int]]  # for each rank, the elements of each collective
ORDER = (4, 3, 2, 1, 0)
FIRST = [6, 6, 5, 3]  # with 7 elements at most: parameter 4; 3 and 1; 2, of another dtype; 0
MARKS = len(SIZES) + 1  # which gradients there are, and the flag


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Note what is sent over each group's rank; everything is sent as it is."""
    found: Sent = {}
    real = gradient_buckets.collective

    def noted(kind: str, name: str, tensor: torch.Tensor, **options: Any) -> Any:
        found.setdefault(options["group"].rank(), []).append(tensor.numel())
        return real(kind, name, tensor, **options)

    monkeypatch.setattr(gradient_buckets, "collective", noted)
    return found


def backward(mine: Sequence[ParamState], buckets: GradientBuckets, rank: int, order: Sequence[int] = ORDER) -> None:
    buckets.begin()
    for index in order:
        mine[index].parameter.grad = gradient(rank, index)
        buckets.accumulated(index)


def after_the_first_step(work: Callable[[GroupView, Any, GradientBuckets], T], **settings: Any) -> list[T]:
    """Return what `work` returns on two ranks whose buckets know, from one step, which parameters are trained."""

    def run(view: GroupView) -> T:
        mine = states()
        buckets = GradientBuckets(mine, view, CPU, Averaging(bucket=7, **settings))
        backward(mine, buckets, view.position)
        buckets.finish(torch.tensor(False))
        for state in mine:
            state.parameter.grad = None
        return work(view, mine, buckets)

    return over_ranks(2, run)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_bucket_is_sent_once_when_its_gradients_and_the_buckets_before_it_are_there(
    sent: Sent, overlap: bool
) -> None:
    def work(view: GroupView, mine: Any, buckets: GradientBuckets) -> None:
        assert sent[view.position] == [MARKS, *FIRST]
        sent[view.position].clear()
        backward(mine, buckets, view.position, (4, 3))
        assert sent[view.position] == ([6] if overlap else [])
        backward_goes_on = (2, 1, 0)
        for index in backward_goes_on:
            mine[index].parameter.grad = gradient(view.position, index)
            buckets.accumulated(index)
        assert sent[view.position] == ([6, 6, 5] if overlap else [])
        buckets.finish(torch.tensor(False))
        assert sent[view.position] == [*FIRST, MARKS]

    after_the_first_step(work, overlap=overlap)


def test_a_gradient_that_comes_after_its_bucket_is_added_and_then_sent_last(sent: Sent) -> None:
    def work(view: GroupView, mine: Any, buckets: GradientBuckets) -> torch.Tensor:
        backward(mine, buckets, view.position, (*ORDER, 4))  # a tied weight: 4 comes twice
        buckets.finish(torch.tensor(False))
        twice: torch.Tensor = mine[4].parameter.grad
        for state in mine:
            state.parameter.grad = None
        sent[view.position].clear()
        backward(mine, buckets, view.position, (3, 2, 1, 0, 4, 3))
        assert sent[view.position] == [6, 3, 5]
        buckets.finish(torch.tensor(False))
        assert sent[view.position] == [6, 3, 5, 6, MARKS, 2]  # 3 came twice
        return twice

    mean = expected(2, 4, 0, lambda rank, index: True)
    assert mean is not None
    for twice in after_the_first_step(work):
        torch.testing.assert_close(twice, 2 * mean)


def test_a_backward_that_raised_after_it_sent_a_bucket_has_failed_for_good() -> None:
    def work(view: GroupView, mine: Any, buckets: GradientBuckets) -> list[bool]:
        found = [buckets.failed]
        backward(mine, buckets, view.position, (4, 3))  # one bucket
        buckets.abandon()
        found.append(buckets.failed)
        buckets.begin()
        buckets.abandon()
        return [*found, buckets.failed]

    assert after_the_first_step(work) == [[False, True, True]] * 2


def test_a_backward_that_raised_after_means_were_set_aside_has_failed() -> None:
    def work(view: GroupView, mine: Any, buckets: GradientBuckets) -> bool:
        buckets.owners = GradientOwners(SIZES, view.size, view.position)
        buckets.owners.assign(range(len(SIZES)))
        for state in mine:
            state.parameter.grad = torch.ones_like(state.parameter)
        buckets.keep_means()
        buckets.begin()
        buckets.abandon()
        return buckets.failed

    assert after_the_first_step(work) == [True, True]


def test_one_rank_sends_nothing_and_keeps_its_gradients() -> None:
    mine = states()
    buckets = GradientBuckets(mine, GroupView((0,), 0, None), CPU, Averaging())
    backward(mine, buckets, 0)
    for average in (buckets.finish, buckets.average_all):
        flag = torch.tensor(True)
        assert average(flag) is flag
        for index, state in enumerate(mine):
            torch.testing.assert_close(state.parameter.grad, gradient(0, index))
