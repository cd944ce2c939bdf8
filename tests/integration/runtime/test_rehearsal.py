"""The dry run, repeated on inputs of the training: what is right stays allowed, what is wrong is found."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.off_meta import activation_device
from tpinit.runtime.planning.check.rehearsal import Rehearsal
from tpinit.runtime.planning.make_plan import make_plan
from tpinit.runtime.planning.schema import GradientRule

from families import catalogue

SOME = ("llama_tied", "llama_uneven", "gpt2", "mixtral", "deepseek_v3", "t5", "clip", "opt", "bloom")


@pytest.mark.parametrize("name", SOME)
def test_a_batch_of_a_family_passes_in_both_modes(name: str) -> None:
    model = catalogue.build(name).train()
    rehearsal = Rehearsal(model, make_plan(model, 2, {}))
    for training in (True, False):
        rehearsal.model.train(training)
        rehearsal.check(catalogue.batch(name, model, 3), model, {})
        assert all(parameter.is_meta for parameter in rehearsal.model.parameters())


def test_a_plan_that_is_wrong_for_the_batch_is_found() -> None:
    model = catalogue.build("llama_kv1").train()
    plan = make_plan(model, 2, {})
    batch = catalogue.batch("llama_kv1", model, 3)
    Rehearsal(model, plan).check(batch, model, {})
    partial = next(one for one in plan.parameters if one.gradient_rule is GradientRule.PARTIAL)
    wrong = tuple(
        replace(one, gradient_rule=GradientRule.REPLICATED) if one is partial else one for one in plan.parameters
    )
    with pytest.raises(PlanError, match=f"{partial.name}: its gradient_rule is"):
        Rehearsal(model, replace(plan, parameters=wrong)).check(batch, model, {})


def test_a_batch_that_the_copy_can_not_run_is_told_from_a_wrong_plan() -> None:
    model = catalogue.build("llama").train()
    rehearsal = Rehearsal(model, make_plan(model, 2, {}))
    for batch in ({"input_ids": None}, {"input_ids": iter([1])}):
        with pytest.raises(PlanError) as caught:
            rehearsal.check(batch, model, {})
        assert caught.value.forward_failed


def test_a_large_batch_is_rehearsed_on_two_rows() -> None:
    model = catalogue.build("llama").train()
    rehearsal = Rehearsal(model, make_plan(model, 2, {}))
    rows: list[int] = []
    forward = rehearsal.model.forward
    rehearsal.model.forward = lambda input_ids: (rows.append(len(input_ids)), forward(input_ids=input_ids))[1]  # type: ignore[func-returns-value]  # records
    rehearsal._features = (1 << 28) // 24  # so that 24 tokens are the most
    rehearsal.check({"input_ids": torch.zeros(5, 12, dtype=torch.long)}, model, {})
    assert set(rows) == {2}
    with pytest.raises(PlanError, match="take too much memory") as caught:
        rehearsal.check({"input_ids": torch.zeros(5, 13, dtype=torch.long)}, model, {})
    assert caught.value.forward_failed


def test_a_rehearsal_runs_on_the_device_of_the_training_and_leaves_its_random_state() -> None:
    model = catalogue.build("llama").train()
    device = torch.device("cpu", 0)
    rehearsal = Rehearsal(model, make_plan(model, 2, {}), device)
    found: list[torch.device] = []
    forward = rehearsal.model.forward

    def watched(input_ids: torch.Tensor) -> object:
        found.append(activation_device())
        torch.rand(3)
        return forward(input_ids=input_ids)

    rehearsal.model.forward = watched
    state = torch.get_rng_state()
    rehearsal.check({"input_ids": torch.zeros(2, 5, dtype=torch.long)}, model, {})
    assert set(found) == {device}
    assert activation_device() != device
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.is_meta for parameter in rehearsal.model.parameters())
