"""Means of gradients over several ranks in one process: every bucket, every rank, every order of the backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn
from tpinit.runtime.groups.gradient_owners import GradientOwners
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.planning.schema import Cut, GradientRule, ParameterPlan, Plan
from tpinit.runtime.settings import Averaging
from tpinit.runtime.training.gradient_buckets import GradientBuckets
from tpinit.runtime.training.param_state import ParamState, make_param_states
from tpinit.spec.vocabulary import DType

from support.thread_ranks import over_ranks

CPU = torch.device("cpu")
SIZES = (3, 4, 5, 2, 6)
DTYPES = (torch.float32, torch.float32, torch.float64, torch.float32, torch.float32)
HAVE = {  # which ranks have a gradient of which parameter
    "all": lambda rank, index: True,
    "some": lambda rank, index: index != 3 and (rank + index) % 2 == 0,
    "first rank only": lambda rank, index: rank == 0 and index != 1,
}


def gradient(rank: int, index: int, step: int = 0) -> torch.Tensor:
    values = torch.arange(SIZES[index], dtype=DTYPES[index])
    return (values + 1) * 2.0 ** (rank + step) + index


def states() -> list[ParamState]:
    model = nn.Module()
    for index, (size, dtype) in enumerate(zip(SIZES, DTYPES, strict=True)):
        model.register_parameter(f"p{index}", nn.Parameter(torch.zeros(size, dtype=dtype)))
    records = [
        ParameterPlan((f"p{index}",), (size,), Cut.REPLICATED, None, GradientRule.REPLICATED)
        for index, size in enumerate(SIZES)
    ]
    return make_param_states(model, Plan(1, 0, tuple(records)), None)


def averaged(
    view: GroupView,
    averaging: Averaging,
    have: Callable[[int, int], bool],
    steps: int = 2,
    order: Sequence[int] = (4, 3, 2, 1, 0),
    owned: bool = False,
    last: int | None = None,
    device: torch.device = CPU,
) -> tuple[list[list[torch.Tensor | None]], list[bool]]:
    """Run backwards and average each; return the gradients after each step, and the flags. Rank 1 sets its flag.

    The gradient of parameter `last` is complete only after the backward, when 1 is added to it.
    """
    mine = states()
    buckets = GradientBuckets(mine, view, device, averaging, [] if last is None else [mine[last]])
    if owned:
        buckets.owners = GradientOwners(SIZES, view.size, view.position)
    found, flags = [], []
    for step in range(steps):
        buckets.begin()
        for index in order:
            if have(view.position, index):
                mine[index].parameter.grad = gradient(view.position, index, step)
                buckets.accumulated(index)
        if last is not None:
            grad = mine[last].parameter.grad
            assert grad is not None, "it was sent before it was complete"
            grad += 1
        flag = buckets.finish(torch.tensor(view.position == 1 and step == 1))
        flags.append(bool(flag))
        found.append([state.parameter.grad for state in mine])
        for state in mine:
            state.parameter.grad = None
    return found, flags


def expected(ranks: int, index: int, step: int, have: Callable[[int, int], bool]) -> torch.Tensor | None:
    held = [gradient(rank, index, step) for rank in range(ranks) if have(rank, index)]
    return torch.stack(held).sum(dim=0) / ranks if held else None


def check(found: Sequence[torch.Tensor | None], ranks: int, step: int, have: Callable[[int, int], bool]) -> None:
    for index, grad in enumerate(found):
        mean = expected(ranks, index, step, have)
        if mean is None:
            assert grad is None, index
        else:
            assert grad is not None, index
            assert grad.dtype == DTYPES[index]
            torch.testing.assert_close(grad, mean, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("have", HAVE)
@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("ranks", "bucket"), [(2, 7), (2, 1), (2, 1000), (3, 7)])
def test_every_gradient_becomes_its_mean_in_every_bucket(ranks: int, bucket: int, overlap: bool, have: str) -> None:
    averaging = Averaging(bucket=bucket, overlap=overlap)
    for found, flags in over_ranks(ranks, lambda view: averaged(view, averaging, HAVE[have])):
        for step, grads in enumerate(found):
            check(grads, ranks, step, HAVE[have])
        assert flags == [False, True]


@pytest.mark.parametrize("last", range(5))
@pytest.mark.parametrize("order", [(4, 3, 2, 1, 0), (0, 1, 2, 3, 4), (2, 4, 0, 3, 1)])
def test_the_order_of_a_backward_changes_nothing_and_a_partial_gradient_is_sent_last(
    order: Sequence[int], last: int
) -> None:
    averaging = Averaging(bucket=7)
    for found, _ in over_ranks(2, lambda view: averaged(view, averaging, HAVE["all"], 3, order, last=last)):
        for step, grads in enumerate(found):
            done = grads[last]
            assert done is not None
            grads[last] = done - 1
            check(grads, 2, step, HAVE["all"])


@pytest.mark.parametrize("have", HAVE)
def test_what_an_accelerator_agrees_on_goes_over_host_memory(have: str) -> None:
    device = torch.device("cuda")  # its tensors are on the CPU here, as are all messages
    for found, flags in over_ranks(2, lambda view: averaged(view, Averaging(bucket=7), HAVE[have], device=device)):
        for step, grads in enumerate(found):
            check(grads, 2, step, HAVE[have])
        assert flags == [False, True]


@pytest.mark.parametrize(
    ("averaging", "factor"),
    [
        (Averaging(prescale=True), 1.0),
        (Averaging(predivide=4.0), 1.0),
        (Averaging(mean=False), 2.0),
        (Averaging(dtype=DType.BF16), 1.0),
    ],
    ids=["prescale", "predivide", "sum", "bf16"],
)
def test_a_mean_is_divided_as_the_settings_say(averaging: Averaging, factor: float) -> None:
    for (found,), _ in over_ranks(2, lambda view: averaged(view, averaging, HAVE["all"], 1)):
        for index, grad in enumerate(found):
            mean = expected(2, index, 0, HAVE["all"])
            assert mean is not None
            torch.testing.assert_close(grad, mean * factor, rtol=1e-2 if averaging.dtype else 1e-6, atol=0.0)


def test_each_mean_is_on_its_owner_alone() -> None:
    ranks = over_ranks(2, lambda view: averaged(view, Averaging(bucket=7), HAVE["all"], 3, owned=True))
    owner = GradientOwners(SIZES, 2, 0)
    owner.assign(range(len(SIZES)))
    assert set(owner.owners.values()) == {0, 1}
    for step in (1, 2):  # before the first update nobody owns anything
        for index in range(len(SIZES)):
            held = [rank for rank in (0, 1) if ranks[rank][0][step][index] is not None]
            assert held == [owner.owners[index]]
            torch.testing.assert_close(ranks[held[0]][0][step][index], expected(2, index, step, HAVE["all"]))


def test_a_mean_that_is_kept_is_not_sent_again() -> None:
    def work(view: GroupView) -> list[torch.Tensor | None]:
        mine = states()
        buckets = GradientBuckets(mine, view, CPU, Averaging(bucket=7))
        buckets.owners = GradientOwners(SIZES, view.size, view.position)
        buckets.owners.assign(range(4))
        for state in mine:
            state.parameter.grad = torch.full_like(state.parameter, 100.0)
        buckets.keep_means()
        assert [index for index, state in enumerate(mine) if state.parameter.grad is not None] == [4]
        buckets.begin()
        for index in (0, 1):
            mine[index].parameter.grad = gradient(view.position, index)
        buckets.finish(torch.tensor(False))
        assert not buckets.failed
        return [state.parameter.grad for state in mine]

    ranks = over_ranks(2, work)
    owner = GradientOwners(SIZES, 2, 0)
    owner.assign(range(5))
    for index in range(4):
        held = [found[index] for found in ranks if found[index] is not None]
        assert ranks[owner.owners[index]][index] is not None
        assert len(held) == 1
        kept = torch.full((SIZES[index],), 100.0, dtype=DTYPES[index])
        mean = expected(2, index, 0, HAVE["all"])
        assert mean is not None
        torch.testing.assert_close(held[0], kept + mean if index in (0, 1) else kept)


def test_a_backward_that_raised_before_it_sent_anything_has_not_failed() -> None:
    def work(view: GroupView) -> bool:
        buckets = GradientBuckets(states(), view, CPU, Averaging())
        buckets.begin()
        buckets.abandon()
        return buckets.failed

    assert over_ranks(2, work) == [False, False]


def test_what_a_backward_had_sent_when_it_raised_is_dropped() -> None:
    def work(view: GroupView) -> tuple[bool, list[torch.Tensor | None]]:
        mine = states()
        buckets = GradientBuckets(mine, view, CPU, Averaging(bucket=7))
        for _ in range(2):
            buckets.begin()
            for index in reversed(range(len(SIZES))):
                mine[index].parameter.grad = gradient(view.position, index)
                buckets.accumulated(index)
            before = buckets.failed
            if _ == 0:
                buckets.finish(torch.tensor(False))
        buckets.abandon()
        for state in mine:
            state.parameter.grad = None
        buckets.begin()
        mine[0].parameter.grad = gradient(view.position, 0)
        buckets.finish(torch.tensor(False))
        return before, [state.parameter.grad for state in mine] + [torch.tensor(buckets.failed)]

    for before, after in over_ranks(2, work):
        assert not before
        assert bool(after[-1])
        torch.testing.assert_close(after[0], expected(2, 0, 0, HAVE["all"]))
        assert all(grad is None for grad in after[1:-1])


def test_a_backward_outside_of_the_engine_is_averaged_plainly() -> None:
    def work(view: GroupView) -> list[torch.Tensor | None]:
        mine = states()
        buckets = GradientBuckets(mine, view, CPU, Averaging(mean=False, bucket=1))
        for index in (0, 2):
            mine[index].parameter.grad = gradient(view.position, index)
        assert not bool(buckets.average_all(torch.tensor(False)))
        return [state.parameter.grad for state in mine]

    for found in over_ranks(3, work):
        check(found, 3, 0, lambda rank, index: index in (0, 2))


def test_one_rank_keeps_its_gradients_and_its_flag() -> None:
    ((found, flags),) = over_ranks(1, lambda view: averaged(view, Averaging(), HAVE["all"], 1))
    check(found[0], 1, 0, HAVE["all"])
    assert flags == [False]


def test_what_is_sent_in_bf16_is_rounded_before_it_is_summed() -> None:
    def work(view: GroupView) -> torch.Tensor | None:
        mine = states()
        mine[0].parameter.grad = torch.tensor([257.0, 1.0, 2.0])  # 257 has nine bits, and bf16 keeps eight
        GradientBuckets(mine, view, CPU, Averaging(dtype=DType.BF16)).finish(torch.tensor(False))
        return mine[0].parameter.grad

    for grad in over_ranks(2, work):
        assert grad is not None
        assert (grad.tolist(), grad.dtype) == ([256.0, 1.0, 2.0], torch.float32)
