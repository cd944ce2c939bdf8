"""Seeing what a model does: on which batch, what feeds what, and where random numbers are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.planning.analysis.example_inputs import example_inputs
from tpinit.runtime.planning.analysis.fake_forward import ForwardContext, forward_context, without_hooks
from tpinit.runtime.planning.analysis.trace import Trace, trace_forward

__all__ = ["dry_run_inputs", "trace_training"]

_LENGTHS = (8, 64, 512)  # tokens, for models that train on a multiple of some length only


def trace_training(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """Return what one run of the model shows, and where it draws random numbers in training.

    It is watched in training, once, while nothing is dropped. Where it draws other numbers, which differ from run to
    run, or trains on no such batch, it is watched in evaluation mode. Raises PlanError for a model that can't be run,
    or takes its seed from the system.
    """
    context = forward_context(model, training=True)
    trained, on_these = _trained(model, inputs, context)
    if trained is not None and on_these and not trained.nondeterministic:
        return trained
    seen = _trace(model, inputs, replace(context, training=False, has_dropout=False))
    if trained is None:
        # What it draws in evaluation mode was seen; what it drops out in training was not.
        seen.reach_dropout |= set(seen.sources) if any(_drops_out(module) for module in context.modules) else set()
    else:
        seen.reach_dropout |= trained.reach_dropout
        seen.reach_random |= trained.reach_random
    return seen


def dry_run_inputs(model: nn.Module, example: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the batch to rehearse on: what was given, else the first of the likely ones that the model takes."""
    if example is not None:
        return example
    likely = example_inputs(model, _device(model))
    for inputs in likely[:-1]:
        try:
            with without_hooks(model):
                trace_forward(model, inputs)
        except Exception:  # another batch may do; of the last one the planner tells what went wrong
            continue
        return inputs
    return likely[-1] if likely else None


def _device(model: nn.Module) -> torch.device:
    for parameter in model.parameters():
        if not parameter.is_meta:
            return parameter.device
    return torch.device("cpu")


def _trained(model: nn.Module, inputs: Mapping[str, Any], context: ForwardContext) -> tuple[Trace | None, bool]:
    """Return what a run in training shows, and whether on these very inputs: some models train on longer ones only.

    None where it trains on no such batch. Raises PlanError for a model that takes its seed from the system.
    """
    trained, length = None, 0
    with _own_seeds() as seeds:
        for length in (0, *_LENGTHS):
            try:
                trained = trace_forward(model, _of_length(inputs, length), context)
            except Exception:  # another length may do
                continue
            break
    if seeds and trained is not None:
        raise PlanError(
            f"the forward of {type(model).__qualname__} seeds its random numbers itself, with torch.seed(), which is "
            "another number on each rank: the ranks of a group would compute different things"
        )
    return trained, length == 0


def _trace(model: nn.Module, inputs: Mapping[str, Any], context: ForwardContext) -> Trace:
    try:
        return trace_forward(model, inputs, context)
    except Exception as error:
        told = {name: list(one.shape) for name, one in inputs.items() if isinstance(one, torch.Tensor)}
        raise PlanError(
            f"the forward of {type(model).__qualname__} can't be run on a small batch {told}: "
            f"{type(error).__name__}: {str(error)[:300]}; give keyword arguments that it takes as `example`"
        ) from error


@contextmanager
def _own_seeds() -> Iterator[list[int]]:
    """Yield a list with an entry for every time that a model seeds its random numbers from the system, for a time."""
    original = torch.seed
    seeds: list[int] = []

    def seed() -> int:
        seeds.append(0)
        return 0

    torch.seed = seed
    try:
        yield seeds
    finally:
        torch.seed = original


def _of_length(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return a batch whose sequences [rows, tokens] have another length, in tokens; 0 for their own."""
    return {
        key: one.repeat(1, length)[:, :length] if length and isinstance(one, torch.Tensor) and one.dim() == 2 else one
        for key, one in inputs.items()
    }


def _drops_out(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module.p > 0
