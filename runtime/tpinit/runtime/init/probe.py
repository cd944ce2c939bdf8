"""The probe: one small forward and backward of the whole model against the sharded one, before anything is cut.

The rehearsal of a plan compares what reaches the row layers of each cut region. The probe compares the result:
the output, and the gradient of every parameter. It works on two copies of the model, in fp32 and in training while
nothing is dropped, so it needs the memory of two more, and leaves the model alone. A model that draws other numbers in
training, or trains on no such batch, is probed in evaluation mode.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from tpinit.runtime.groups.process_groups import ParallelGroups
from tpinit.runtime.init.apply import apply_plan
from tpinit.runtime.planning.analysis.dropout_off import DropoutDisabled, fixed_host_rng, preserved_rng
from tpinit.runtime.planning.analysis.example_inputs import unwrap_adapters
from tpinit.runtime.planning.analysis.fake_forward import without_hooks
from tpinit.runtime.planning.analysis.train_trace import dry_run_inputs
from tpinit.runtime.planning.schema import Plan
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.gradients import sum_parts
from tpinit.runtime.training.optimizers import make_param_states

__all__ = ["VERIFY_MODES", "probe"]

VERIFY_MODES = ("rehearsal", "probe")
_TOLERANCE = 1e-4  # of a gradient's norm, in fp32, over two orders of summation


def probe(
    model: nn.Module, plan: Plan, mesh: ParallelGroups, device: torch.device, example: Mapping[str, Any] | None = None
) -> str | None:
    """Return what a sharded copy of `model` computes otherwise than a whole copy, in words; None where nothing.

    `example` are the keyword arguments of one small forward, by default made from the model's config. Every
    rank of the TP group must call this: the sharded copy takes its collectives.
    """
    given = dry_run_inputs(model, example)
    assert given is not None, "a model that was planned has inputs"
    inputs = {**_labels(model, given), **given}
    inputs = {key: one.to(device) if isinstance(one, torch.Tensor) else one for key, one in inputs.items()}
    with preserved_rng(), DropoutDisabled():
        whole = _copy(model)
        whole.to(device)
        training = _trains_alike(whole, inputs)
        whole.train(training)
        expected = _backward(whole, inputs)
        gradients = {name: one.grad for name, one in whole.named_parameters()}
        del whole
        cut = _copy(model).train(training)
        apply_plan(cut, plan, mesh.tp.group, None, device)
        got = _backward(cut, inputs)
        slots = make_param_states(cut, plan, None)
        sum_parts(slots, mesh.tp, device)
    if not abs(got - expected) <= _TOLERANCE * max(1.0, abs(expected)):
        return f"its output is {got:.6g} where the whole model's is {expected:.6g}"
    largest = max([float(one.norm()) for one in gradients.values() if one is not None], default=0.0)
    for slot in slots:
        whole_grad, grad = gradients[slot.record.name], slot.parameter.grad
        if whole_grad is None and grad is None:
            continue
        right = torch.zeros(slot.record.shape, device=device) if whole_grad is None else whole_grad
        right = local_part(right, slot.record, plan.tp_size, plan.tp_rank)
        off = float((right - (torch.zeros_like(right) if grad is None else grad)).norm())
        if not off <= _TOLERANCE * (float(right.norm()) + 0.01 * largest):
            return f"the gradient of {slot.record.name} is off by {off / (float(right.norm()) or 1.0):.2g} of its norm"
    return None


def _copy(model: nn.Module) -> nn.Module:
    with without_hooks(model):
        return copy.deepcopy(model).float()


def _trains_alike(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Tell whether two runs in training, with other random numbers, come out the same. Every rank tells the same."""
    found = []
    model.train()
    for seed in (1, 2):
        torch.manual_seed(seed)
        try:
            with torch.no_grad(), fixed_host_rng():
                found.append(float(_loss(model, inputs)))
        except Exception:  # it trains on longer batches, or on none: evaluation mode tells
            return False
    return abs(found[0] - found[1]) <= _TOLERANCE * max(1.0, abs(found[0]))


def _labels(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Give a causal language model its own tokens as labels, so that its loss is probed too."""
    _, inner = unwrap_adapters(model)
    causal = type(inner).__name__.endswith("ForCausalLM") and "input_ids" in inputs
    return {"labels": inputs["input_ids"]} if causal else {}


def _backward(model: nn.Module, inputs: Mapping[str, Any]) -> float:
    """Run forward and backward from one number that depends on all of the output; return it."""
    torch.manual_seed(0)  # whatever is drawn all the same is drawn by both models
    with fixed_host_rng():
        loss: Any = _loss(model, inputs)
        loss.backward()
    return float(loss.detach())


def _loss(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Run a forward; return one number that depends on all of the output."""
    output = model(**inputs)
    loss: torch.Tensor | None = getattr(output, "loss", None)
    if loss is None:
        loss = torch.zeros((), device=next(model.parameters()).device)
        values = output.values() if isinstance(output, Mapping) else [output]
        for one in tree_leaves(list(values)):
            if isinstance(one, torch.Tensor) and one.is_floating_point():
                weights = torch.linspace(-1, 1, one.numel(), device=one.device).sin().view(one.shape)
                loss = loss + (one * weights).mean()
    return loss
