"""The probe: compare one small forward and backward of the unsharded model with the sharded one, before sharding.

The dry run of a plan compares the inputs of the row-parallel layers of each sharded region. The probe compares the
result: the output, and the gradient of every parameter. It runs on two fp32 copies of the model, so it needs the memory
of both, and leaves the model itself unchanged. The copies run in training mode with dropout disabled, or in evaluation
mode if two runs in training mode differ or the small batch can't be trained on.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.groups.agreement import describe_error
from tpinit.runtime.groups.process_groups import ParallelGroups
from tpinit.runtime.init.apply import apply_plan
from tpinit.runtime.internals.torch_private import buffers_of, parameters_of, tree_leaves
from tpinit.runtime.parallel.device_rng import seed_torch
from tpinit.runtime.planning.analysis.copies import apart_from
from tpinit.runtime.planning.analysis.dropout_off import DropoutDisabled, fixed_host_rng, preserved_rng
from tpinit.runtime.planning.analysis.example_inputs import unwrap_adapters
from tpinit.runtime.planning.analysis.fake_forward import without_hooks
from tpinit.runtime.planning.analysis.train_trace import dry_run_inputs, with_length
from tpinit.runtime.planning.schema import Plan
from tpinit.runtime.slicing import local_part
from tpinit.runtime.training.gradients import sum_partial
from tpinit.runtime.training.param_state import ParamState, make_param_states

__all__ = ["VARIANTS", "Reference", "run_unsharded", "sharded_difference"]

VARIANTS = ("the small batch", "a larger batch", "evaluation")
_TOLERANCE = 1e-4  # relative, in fp32, between two orders of summation


@dataclass(frozen=True, slots=True)
class Reference:
    """What the unsharded model computes on the small batch `inputs`: outputs, loss, and gradients by parameter name.

    `training` is the mode in which it ran.
    """

    inputs: dict[str, Any]
    dtype: torch.dtype
    training: bool
    outputs: list[torch.Tensor]
    loss: float
    gradients: dict[str, torch.Tensor | None]


def run_unsharded(
    model: nn.Module,
    plan: Plan,
    device: torch.device,
    example: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    variant: str = VARIANTS[0],
) -> Reference:
    """Run a copy of `model` in `dtype` forward and backward on one small batch. Issues no collective.

    `example` are the keyword arguments of the forward; by default they are made from the model's config. `variant` is
    one of VARIANTS: a forward may depend on its mode, and on the sizes of its batch.

    Raises what the model raises, and PlanError if its loss is not finite.
    """
    inputs = _probe_inputs(model, plan, device, example, dtype)
    if variant == "a larger batch":
        inputs = {name: _enlarged(value) for name, value in inputs.items()}
    with preserved_rng(), DropoutDisabled(), apart_from(model):
        training = variant != "evaluation" and _is_deterministic_in_training(_copy(model, dtype).to(device), inputs)
        # Another copy: a forward may count or average, and both models must have run as often.
        unsharded = _copy(model, dtype).to(device).train(training)
        outputs = _outputs(unsharded, inputs)
        loss = _backward(unsharded, inputs)
    if not math.isfinite(loss):
        raise PlanError(f"the loss of the unsharded model on a small batch is {loss}")
    gradients = {name: parameter.grad for name, parameter in unsharded.named_parameters()}
    return Reference(inputs, dtype, training, outputs, loss, gradients)


def sharded_difference(
    model: nn.Module, plan: Plan, groups: ParallelGroups, device: torch.device, reference: Reference
) -> str | None:
    """Return the first difference between a sharded copy of `model` and the unsharded one, in words; None if equal.

    An error in the sharded copy counts as a difference. Every rank of the TP group must call this: the forward of the
    sharded copy issues collectives.
    """
    try:
        with preserved_rng(), DropoutDisabled(), apart_from(model):
            sharded = _copy(model, reference.dtype).train(reference.training)
            apply_plan(sharded, plan, groups.tp.group, None, device)
            outputs = _outputs(sharded, reference.inputs)
            loss = _backward(sharded, reference.inputs)
            states = make_param_states(sharded, plan, None)
            sum_partial(states, groups.tp, device)
    except Exception as error:
        return f"the sharded model raises {describe_error(error)}"
    difference = _different_output(outputs, reference.outputs)
    if difference is not None:
        return difference
    expected = reference.loss
    if not abs(loss - expected) <= _TOLERANCE * max(1.0, abs(expected)):
        return f"the loss of the sharded model is {loss:.6g}, of the unsharded model {expected:.6g}"
    return _different_gradient(states, reference.gradients, plan)


def _probe_inputs(
    model: nn.Module, plan: Plan, device: torch.device, example: Mapping[str, Any] | None, dtype: torch.dtype
) -> dict[str, Any]:
    """Return the keyword arguments of the probe's forward, floating-point ones in `dtype`.

    Sequence parallelism needs a length that TP divides.
    """
    inputs = dry_run_inputs(model, example)
    assert inputs is not None, "a model with a plan has example inputs"
    if plan.sequences and example is None:
        length = max((value.shape[1] for value in inputs.values() if _is_tokens(value)), default=0)
        inputs = with_length(inputs, -(-length // plan.tp_size) * plan.tp_size)
    inputs = {**_labels(model, inputs), **inputs}
    return {
        key: value.detach().to(device, dtype if value.is_floating_point() else value.dtype)
        if isinstance(value, torch.Tensor)
        else value
        for key, value in inputs.items()
    }


def _enlarged(value: Any) -> Any:
    """Return a tensor with twice as many rows, and four times as many tokens if its second dimension counts tokens."""
    if not isinstance(value, torch.Tensor) or not value.dim():
        return value
    has_tokens = value.dim() == 3 or (value.dim() == 2 and not value.is_floating_point())
    return value.repeat(2, *([4] if has_tokens else [1] * (value.dim() > 1)), *[1] * (value.dim() - 2))


def _is_tokens(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 2


def _outputs(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return every floating-point tensor of a forward without labels: logits that a loss would hide an offset of."""
    seed_torch(0, _device(model))
    with torch.no_grad(), fixed_host_rng():
        output = model(**copy.deepcopy({name: value for name, value in inputs.items() if name != "labels"}))
    return _floating_leaves(output)


def _different_output(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> str | None:
    """Return which output of the sharded model differs from the unsharded one in shape or in an element, in words."""
    shapes = [[list(leaf.shape) for leaf in leaves] for leaves in (actual, expected)]
    if shapes[0] != shapes[1]:
        return f"the outputs of the sharded model have shapes {shapes[0]}, of the unsharded model {shapes[1]}"
    for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
        if not other.numel():
            continue
        scale, error = float(other.abs().max()), float((one - other).abs().max())
        if not error <= _TOLERANCE * 10 * max(scale, 1e-6):
            ratio = error / (scale or 1.0)
            return f"output {index} of the sharded model differs (max error {ratio:.2g} x max abs)"
    return None


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


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a model in `dtype`, without hooks. Weights that are not loaded yet get random values."""
    with without_hooks(model):
        copied = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for module in copied.modules():
        for held in (parameters_of(module), buffers_of(module)):
            for name, tensor in held.items():
                if tensor is not None and (tensor.is_meta or _is_placeholder(tensor)):
                    held[name] = _drawn(tensor, generator)  # type: ignore[assignment]  # a parameter or a buffer
    return copied.to(dtype)


def _is_placeholder(tensor: torch.Tensor) -> bool:
    """Return whether a parameter takes the memory of one element, as before its weights are loaded."""
    return tensor.numel() > 1 and not any(tensor.stride())


def _drawn(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return random values for a tensor without values: around 0 for matrices, between 0.5 and 1.5 for the others."""
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    values = torch.rand(tensor.shape, generator=generator) + 0.5
    if tensor.dim() > 1:
        values = (values - 1.0) * 0.2
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(values, requires_grad=tensor.requires_grad)
    return values


def _is_deterministic_in_training(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Return whether two forwards in training mode with different seeds give one result. It is equal on every rank.

    Leaves the model in training mode.
    """
    results = []
    model.train()
    for seed in (1, 2):
        seed_torch(seed, _device(model))
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
    seed_torch(0, _device(model))  # so that both models draw the same random numbers, if they still draw any
    with fixed_host_rng():
        loss: Any = _loss(model, inputs)
        loss.backward()
    return float(loss.detach())


def _loss(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Run a forward; return the model's loss, or a scalar that depends on every floating-point output."""
    output = model(**copy.deepcopy(inputs))  # a forward may write to its inputs
    loss: torch.Tensor | None = getattr(output, "loss", None)
    if loss is None:
        loss = torch.zeros((), device=_device(model))
        generator = torch.Generator().manual_seed(0)
        for leaf in _floating_leaves(output):
            # Random weights of one sign in the mean: neither an offset nor a permutation cancels in the sum.
            weights = torch.rand(leaf.shape, generator=generator) + 0.5
            loss = loss + (leaf * weights.to(leaf.device)).mean()
    return loss


def _floating_leaves(output: object) -> list[torch.Tensor]:
    """Return the floating-point tensors of a model's output, in order."""
    values = list(output.values()) if isinstance(output, Mapping) else [output]
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
