"""Traces a model in training mode, and chooses the batch to trace it on."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.example_inputs import example_inputs
from tpinit.runtime.planning.analysis.example_labels import example_labels
from tpinit.runtime.planning.analysis.fake_forward import ForwardContext, forward_context, without_hooks
from tpinit.runtime.planning.analysis.known_code import unknown_code
from tpinit.runtime.planning.analysis.off_meta import activation_device
from tpinit.runtime.planning.analysis.trace import Trace, trace_forward

__all__ = ["dry_run_inputs", "trace_training", "with_length"]

_OF_DEVICES = re.compile(r"\b(?:cuda|gpus?|cpu|xpu|rocm|triton|flash|device)", re.IGNORECASE)
_LENGTHS = (8, 64, 512)  # in tokens: some models train only on sequences that are a multiple of some length


def trace_training(
    model: nn.Module, inputs: Mapping[str, Any], watched: frozenset[str] = frozenset(), opaque: Collection[str] = ()
) -> Trace:
    """Return the trace of the model in training mode, with dropout replaced so that nothing is dropped.

    A second forward, with labels, adds what the loss of the model reads. `watched` are the modules whose inputs and
    outputs are recorded; the linear layers `opaque` run as they are.

    If the training forward draws random numbers that can't be replaced, or does not run on this batch, the result is
    the trace in evaluation mode, to which `reach_dropout` of training is added: of every linear if training did not run
    and the model has dropout.

    Raises PlanError if the model does not run on the batch, or seeds its RNG with `torch.seed()`.
    """
    context = forward_context(model, True, watched, opaque)
    context.watches_state = unknown_code(model, inputs) is not None
    trace = _trace_without_labels(model, inputs, context)
    for labels in example_labels(model, inputs):
        try:
            labelled = trace_forward(model, {**inputs, **labels}, trace.context)
        except Exception:  # these labels are not of the kind that the model takes
            continue
        trace.add_labelled(labelled)
        break
    return trace


def _trace_without_labels(model: nn.Module, inputs: Mapping[str, Any], context: ForwardContext) -> Trace:
    """Return the trace in training mode, else in evaluation mode: see `trace_training`."""
    training_trace, on_given_length = _trace_any_length(model, inputs, context)
    if training_trace is not None and on_given_length and not training_trace.nondeterministic:
        return training_trace
    trace = _trace_or_error(model, inputs, replace(context, training=False, has_dropout=False))
    if training_trace is not None:
        trace.reach_dropout |= training_trace.reach_dropout
        trace.kept |= training_trace.kept
    elif any(isinstance(module, nn.Dropout) and module.p > 0 for module in context.modules):
        trace.reach_dropout |= set(trace.sources)  # training did not run: any linear may reach a dropout
    return trace


def dry_run_inputs(model: nn.Module, example: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the batch for traces and dry runs: `example`, else the first of `example_inputs` on which the model runs.

    If the model runs on none of them, the last one is returned, so that the caller reports why. None if no batch can
    be derived from the model.
    """
    if example is not None:
        return example
    batches = example_inputs(model, _device(model))
    for inputs in batches[:-1]:
        try:
            with without_hooks(model):
                trace_forward(model, inputs)
        except Exception:  # the model may run on the next batch
            continue
        return inputs
    return batches[-1] if batches else None


def _device(model: nn.Module) -> torch.device:
    """Return the device of the first parameter that is not on the meta device; without one, that of activations."""
    for parameter in model.parameters():
        if not parameter.is_meta:
            return parameter.device
    return activation_device()


def _trace_any_length(
    model: nn.Module, inputs: Mapping[str, Any], context: ForwardContext
) -> tuple[Trace | None, bool]:
    """Return a trace of the first sequence length on which the model runs, and whether that is the length of `inputs`.

    None if it runs on no length. Raises PlanError if the model seeds its RNG with `torch.seed()`.
    """
    trace, length = None, 0
    with _count_seed_calls() as seed_calls:
        for length in (0, *_LENGTHS):
            try:
                trace = trace_forward(model, with_length(inputs, length), context)
            except Exception:  # the model may run on the next length
                continue
            break
    if seed_calls and trace is not None:
        raise PlanError(
            f"the forward of {type(model).__qualname__} calls torch.seed(), which takes another seed on each rank, so "
            "the ranks of a TP group would draw different numbers; call torch.manual_seed() with a fixed seed instead"
        )
    return trace, length == 0


def _trace_or_error(model: nn.Module, inputs: Mapping[str, Any], context: ForwardContext) -> Trace:
    try:
        return trace_forward(model, inputs, context)
    except Exception as error:
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        shapes = {name: list(value.shape) for name, value in tensors.items()}
        where = next((value.device for value in tensors.values()), activation_device())
        raise PlanError(
            f"the forward of {type(model).__qualname__} can't be run on a small batch of shapes {shapes}: "
            f"{type(error).__name__}: {str(error)[:300]}; {_advice(error, where)}",
            forward_failed=True,
        ) from error


def _advice(error: Exception, where: torch.device) -> str:
    """Return what to do about a forward that failed on a device."""
    if where.type == "cpu" and _OF_DEVICES.search(str(error)):
        return (
            "planning ran it on the CPU, and its kernels seem to need a GPU: start where one is visible, or load the "
            'model with attn_implementation="sdpa" or "eager"'
        )
    return "pass keyword arguments that it takes as `example`"


@contextmanager
def _count_seed_calls() -> Iterator[list[int]]:
    """Replace `torch.seed` for the time of the context. Yields a list that grows by one entry for each call."""
    original = torch.seed
    calls: list[int] = []

    def seed() -> int:
        calls.append(0)
        return 0

    torch.seed = seed
    try:
        yield calls
    finally:
        torch.seed = original


def with_length(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return the batch with each tensor [rows, tokens] repeated and cut to `length` tokens; unchanged if it is 0."""
    return {
        key: value.repeat(1, length)[:, :length]
        if length and isinstance(value, torch.Tensor) and value.dim() == 2
        else value
        for key, value in inputs.items()
    }
