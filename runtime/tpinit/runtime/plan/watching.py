"""Seeing what a model does: on which batch, what feeds what, and where random numbers are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from tpinit.runtime.errors import PlanError
from tpinit.runtime.plan.examples import example_inputs
from tpinit.runtime.plan.stubs import untouched
from tpinit.runtime.plan.trace import Trace, draws, trace

__all__ = ["rehearsed_on", "watched"]

_LENGTHS = (8, 64, 512)  # tokens, for models that train on a multiple of some length only


def watched(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    """Return what one run of the model shows, and where it draws random numbers in training."""
    seen = _trace(model, inputs)
    _note_random(model, inputs, seen)
    return seen


def rehearsed_on(model: nn.Module, example: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """Return the batch to rehearse on: what was given, else the first of the likely ones that the model takes."""
    if example is not None:
        return example
    likely = example_inputs(model, _device(model))
    for inputs in likely[:-1]:
        try:
            with untouched(model):
                trace(model, inputs)
        except Exception:  # another batch may do; of the last one the planner tells what went wrong
            continue
        return inputs
    return likely[-1] if likely else None


def _device(model: nn.Module) -> torch.device:
    for parameter in model.parameters():
        if not parameter.is_meta:
            return parameter.device
    return torch.device("cpu")


def _trace(model: nn.Module, inputs: Mapping[str, Any]) -> Trace:
    try:
        return trace(model, inputs)
    except Exception as error:
        told = {name: list(one.shape) for name, one in inputs.items() if isinstance(one, torch.Tensor)}
        raise PlanError(
            f"the forward of {type(model).__qualname__} can't be run on a small batch {told}: "
            f"{type(error).__name__}: {str(error)[:300]}; give keyword arguments that it takes as `example`"
        ) from error


def _note_random(model: nn.Module, inputs: Mapping[str, Any], seen: Trace) -> None:
    """Note where random numbers are drawn, in training too. Some models train on longer batches than this one.

    Raises PlanError for a model that takes its seed from the system.
    """
    original, own_seeds = torch.seed, 0

    def seed() -> int:
        nonlocal own_seeds
        own_seeds += 1
        return 0

    torch.seed = seed
    try:
        for length in (0, *_LENGTHS):
            batch = _of_length(inputs, length)
            try:
                # Most models draw nothing: then there is nothing to follow.
                drawn = draws(model, batch, True, seen.stage)
                trained = trace(model, batch, True, seen.stage) if drawn else Trace()
            except Exception:  # another length may do
                continue
            break
        else:
            # What it draws in evaluation mode was seen; what it drops out in training was not.
            seen.randomised |= set(seen.sources) if any(_drops_out(module) for module in model.modules()) else set()
            return
    finally:
        torch.seed = original
    if own_seeds:
        raise PlanError(
            f"the forward of {type(model).__qualname__} seeds its random numbers itself, with torch.seed(), which is "
            "another number on each rank: the ranks of a group would compute different things"
        )
    seen.randomised |= trained.randomised
    seen.chancy |= trained.chancy


def _of_length(inputs: Mapping[str, Any], length: int) -> dict[str, Any]:
    """Return a batch whose sequences [rows, tokens] have another length, in tokens; 0 for their own."""
    return {
        key: one.repeat(1, length)[:, :length] if length and isinstance(one, torch.Tensor) and one.dim() == 2 else one
        for key, one in inputs.items()
    }


def _drops_out(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module.p > 0
