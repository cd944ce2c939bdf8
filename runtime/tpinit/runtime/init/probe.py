"""The probe: compare one small forward and backward of the unsharded model with the sharded one, before sharding.

The dry run of a plan compares the inputs of the row-parallel layers of each sharded region. The probe compares the
result: the output, and the gradient of every parameter. It runs on two fp32 copies of the model, so it needs the memory
of both, and leaves the model itself unchanged. The copies run in training mode with dropout disabled, or in evaluation
mode if two runs in training mode differ or the small batch can't be trained on.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from tpinit.runtime.groups.process_groups import ParallelGroups
from tpinit.runtime.init.apply import apply_plan
from tpinit.runtime.internals.torch_private import tree_leaves
from tpinit.runtime.planning.analysis.dropout_off import DropoutDisabled, fixed_host_rng, preserved_rng
from tpinit.runtime.planning.analysis.example_inputs import unwrap_adapters
from tpinit.runtime.planning.analysis.fake_forward import without_hooks
from tpinit.runtime.planning.analysis.train_trace import dry_run_inputs
from tpinit.runtime.planning.schema import Plan
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.gradients import sum_partial
from tpinit.runtime.training.param_state import ParamState, make_param_states

__all__ = ["VERIFY_MODES", "probe"]

VERIFY_MODES = ("rehearsal", "probe")
_TOLERANCE = 1e-4  # relative, in fp32, between two orders of summation


def probe(
    model: nn.Module, plan: Plan, groups: ParallelGroups, device: torch.device, example: Mapping[str, Any] | None = None
) -> str | None:
    """Return the first difference between a sharded copy of `model` and an unsharded one, in words; None if equal.

    `example` are the keyword arguments of one small forward; by default they are made from the model's config. Every
    rank of the TP group must call this: the forward of the sharded copy issues collectives.
    """
    forward_inputs = dry_run_inputs(model, example)
    assert forward_inputs is not None, "a model with a plan has example inputs"
    inputs = {**_labels(model, forward_inputs), **forward_inputs}
    inputs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    with preserved_rng(), DropoutDisabled():
        unsharded = _fp32_copy(model)
        unsharded.to(device)
        training = _is_deterministic_in_training(unsharded, inputs)
        unsharded.train(training)
        expected = _backward(unsharded, inputs)
        gradients = {name: parameter.grad for name, parameter in unsharded.named_parameters()}
        del unsharded
        sharded = _fp32_copy(model).train(training)
        apply_plan(sharded, plan, groups.tp.group, None, device)
        actual = _backward(sharded, inputs)
        states = make_param_states(sharded, plan, None)
        sum_partial(states, groups.tp, device)
    if not abs(actual - expected) <= _TOLERANCE * max(1.0, abs(expected)):
        return f"the output of the sharded model is {actual:.6g}, of the unsharded model {expected:.6g}"
    return _different_gradient(states, gradients, plan)


def _different_gradient(
    states: list[ParamState], gradients: Mapping[str, torch.Tensor | None], plan: Plan
) -> str | None:
    """Return which gradient of the sharded model differs from its part of the unsharded one, in words."""
    largest = max([float(grad.norm()) for grad in gradients.values() if grad is not None], default=0.0)
    for state in states:
        full, actual = gradients[state.record.name], state.parameter.grad
        if full is None and actual is None:
            continue
        if full is None:
            full = torch.zeros(state.record.shape, device=state.parameter.device)
        expected = local_part(full, state.record, plan.tp_size, plan.tp_rank)
        error = float((expected - (torch.zeros_like(expected) if actual is None else actual)).norm())
        norm = float(expected.norm())
        # A gradient that is tiny beside the largest one may be rounding error alone.
        if not error <= _TOLERANCE * (norm + 0.01 * largest):
            return (
                f"the gradient of `{state.record.name}` differs from the unsharded model's "
                f"(error {error / (norm or 1.0):.2g} x its norm)"
            )
    return None


def _fp32_copy(model: nn.Module) -> nn.Module:
    with without_hooks(model):
        return copy.deepcopy(model).float()


def _is_deterministic_in_training(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Return whether two forwards in training mode with different seeds give one result. It is equal on every rank.

    Leaves the model in training mode.
    """
    results = []
    model.train()
    for seed in (1, 2):
        torch.manual_seed(seed)
        try:
            with torch.no_grad(), fixed_host_rng():
                results.append(float(_loss(model, inputs)))
        except Exception:  # the model may need longer batches in training; evaluation mode then still compares
            return False
    return abs(results[0] - results[1]) <= _TOLERANCE * max(1.0, abs(results[0]))


def _labels(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tokens as labels for a causal language model, so that its loss is compared too; nothing for others."""
    _, inner = unwrap_adapters(model)
    causal = type(inner).__name__.endswith("ForCausalLM") and "input_ids" in inputs
    return {"labels": inputs["input_ids"]} if causal else {}


def _backward(model: nn.Module, inputs: Mapping[str, Any]) -> float:
    """Run a forward and a backward from a scalar that depends on all of the output; return the scalar."""
    torch.manual_seed(0)  # so that both models draw the same random numbers, if they still draw any
    with fixed_host_rng():
        loss: Any = _loss(model, inputs)
        loss.backward()
    return float(loss.detach())


def _loss(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Run a forward; return the model's loss, or a scalar that depends on every floating-point output."""
    output = model(**inputs)
    loss: torch.Tensor | None = getattr(output, "loss", None)
    if loss is None:
        loss = torch.zeros((), device=next(model.parameters()).device)
        values = output.values() if isinstance(output, Mapping) else [output]
        for leaf in tree_leaves(list(values)):
            if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                weights = torch.linspace(-1, 1, leaf.numel(), device=leaf.device).sin().view(leaf.shape)
                loss = loss + (leaf * weights).mean()
    return loss
