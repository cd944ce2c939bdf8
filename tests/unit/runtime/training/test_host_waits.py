"""On an accelerator the host waits for the device once in an update: reads of a tensor's values are counted.

The device is torch's meta device: a read of a value there is an error, and so is an operation on two devices.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.planning.schema import Cut, GradientRule, ParameterPlan
from tpinit.runtime.settings import Averaging
from tpinit.runtime.training.gradient_buckets import GradientBuckets
from tpinit.runtime.training.gradients import global_norm, scale, sum_partial
from tpinit.runtime.training.param_state import ParamState

META, CPU = torch.device("meta"), torch.device("cpu")


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def states(device: torch.device) -> list[ParamState]:
    """Return a sharded, a replicated and an unused parameter; the first two have gradients that TP ranks add up."""
    found = []
    for name in ("sharded", "replicated", "unused"):
        cut = (Cut.COLUMN, 0, GradientRule.PARTIAL, (((0, 4),),)) if name == "sharded" else None
        record = (
            ParameterPlan((name,), (4, 2), cut[0], cut[1], cut[2], slices=cut[3])
            if cut is not None
            else ParameterPlan((name,), (4, 2), Cut.REPLICATED, None, GradientRule.PARTIAL)
        )
        parameter = nn.Parameter(torch.ones(4, 2, device=device))
        parameter.grad = None if name == "unused" else torch.full((4, 2), 3.0, device=device)
        found.append(ParamState(parameter, parameter, record))
    return found


def group() -> GroupView:
    return GroupView((0,), 0, dist.group.WORLD, dist.group.WORLD)


def test_sums_means_and_the_norm_read_no_value_of_the_device() -> None:
    held, view = states(META), group()
    sum_partial(held, view, META)
    flag = GradientBuckets(held, view, META, Averaging()).finish(torch.zeros((), dtype=torch.bool, device=META))
    norm = global_norm(held, view, META, flag)
    scale(held, torch.ones((), device=META))
    assert flag.device == META
    assert [state.target.grad is None for state in held] == [False, False, True]
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # the one read of an update
        norm.read()


def test_the_cpu_and_an_accelerator_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch for accelerators runs on the CPU too, since messages of this world go there."""
    for flag in (False, True):
        results = []
        for device in (CPU, META):
            held, view = states(CPU), group()
            sum_partial(held, view, device)
            bad = GradientBuckets(held, view, device, Averaging()).finish(torch.tensor(flag))
            results.append(([state.target.grad for state in held], bool(bad)))
        assert results[0][1] == results[1][1] == flag
        for one, other in zip(results[0][0], results[1][0], strict=True):
            assert (one is None and other is None) or torch.equal(one, other)


def test_a_read_of_a_flag_on_the_device_would_be_seen() -> None:
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        sum_partial(states(META), group(), CPU)  # as before: the flags are sent with the gradients
