"""Functions of torch that are given tensors or an optimizer, and would take one rank's part for the whole.

`torch.nn.utils.clip_grad_norm_` and `get_total_norm` compute the norm of the tensors that they get. From the first
`initialize` on they take the whole model's for tensors of a sharded model, for every caller, also one who imported them
before: both call the function in one cell, and ours is there. `GradScaler.unscale_` is wrapped likewise, so that all
ranks skip a step together. torch.nn.init draws no part, and a collective over a TP group gets none
(`parts_in_functions`). An optimizer that `initialize` did not see must be elementwise. For other tensors and optimizers
everything is as before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.issuing import collective
from tpinit.runtime.internals.autograd_private import run_around_backward
from tpinit.runtime.internals.init_private import check_before_draws
from tpinit.runtime.internals.torch_private import found_infs, total_norm_cell
from tpinit.runtime.training.clipping import check_finite, whole_norm
from tpinit.runtime.training.optimizer_kinds import ELEMENTWISE, class_name
from tpinit.runtime.training.outer_wrappers import watch_wrappers
from tpinit.runtime.training.outside_reads import checked_backward, marked_gradients
from tpinit.runtime.training.parts_in_functions import refuse_collectives_of_parts, refuse_draw
from tpinit.runtime.training.sharded_tensors import ShardedTensors, sharded_models

__all__ = ["recognize_sharded_tensors"]

_MARK = "tp_original"


def recognize_sharded_tensors() -> None:
    """Put our functions in the place of torch's, once for a process."""
    watch_wrappers()
    run_around_backward(checked_backward, marked_gradients)
    cell = total_norm_cell()
    if hasattr(cell.cell_contents, _MARK):
        return
    cell.cell_contents = _with_whole_norms(cell.cell_contents)
    torch.amp.GradScaler.unscale_ = _with_agreement(torch.amp.GradScaler.unscale_)  # type: ignore[method-assign]  # for all scalers
    check_before_draws(refuse_draw)
    refuse_collectives_of_parts()
    register_optimizer_step_pre_hook(_check_optimizer)
    register_optimizer_step_post_hook(_mark_gradients)


def _with_whole_norms(original: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return torch's norm of a list of tensors that takes the whole ones of those that belong to a sharded model."""

    @wraps(original)
    def total_norm(
        tensors: Any, norm_type: float = 2.0, error_if_nonfinite: bool = False, foreach: bool | None = None
    ) -> torch.Tensor:
        given = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)
        owned = [(model, found) for model in sharded_models() if (found := model.find(given))]
        if not owned:
            local: torch.Tensor = original(given, norm_type, error_if_nonfinite, foreach)
            return local
        known = {id(tensor) for _, found in owned for _, tensor in found}
        rest = [tensor for tensor in given if id(tensor) not in known]
        norms = []
        for model, found in owned:
            model.before_norm("clip_grad_norm_")
            norms.append(whole_norm(found, model, norm_type))
        if rest:
            norms.append(original(rest, norm_type, False, foreach).to(norms[0]))
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(norms), float(norm_type))
        check_finite(norm, norm_type, error_if_nonfinite)
        return norm

    setattr(total_norm, _MARK, original)
    return total_norm


def _with_agreement(original: Callable[..., None]) -> Callable[..., None]:
    """Return `GradScaler.unscale_` whose overflow flags are equal on all ranks for the optimizer of a sharded model."""

    @wraps(original)
    def unscale(scaler: torch.amp.GradScaler, optimizer: Optimizer) -> None:
        models = [one for one in sharded_models() if one.optimizer is optimizer] or _models_of(optimizer)
        if not models or not scaler.is_enabled():
            original(scaler, optimizer)
            return
        for model in models:
            model.before_norm("GradScaler.unscale_")
            _refuse_fp16(model)
            model.hooks.unmark()
        original(scaler, optimizer)
        for model in models:
            model.hooks.mark()
        for flag, model in itertools.product(found_infs(scaler, optimizer), models):
            for group in (model.groups.tp, model.groups.dp):
                if group.group is not None:
                    collective("all_reduce", "overflow", flag, op=dist.ReduceOp.MAX, group=group.group)

    setattr(unscale, _MARK, original)
    return unscale


def _refuse_fp16(model: ShardedTensors) -> None:
    """Raise EngineError for fp16 parameters: torch's scaler takes fp32 ones, and the engine scales fp16 itself."""
    if any(state.parameter.dtype is torch.float16 and state.parameter.requires_grad for state in model.states):
        raise EngineError(
            "GradScaler with fp16 parameters: torch's scaler unscales fp32 gradients only; with fp16 in the config "
            "call engine.backward(loss) and engine.step(), which scale the loss themselves"
        )


def _check_optimizer(optimizer: Optimizer, *_: Any) -> None:
    """Let an optimizer that `initialize` did not see update slices. Raises EngineError if it is not elementwise."""
    models = _models_of(optimizer)
    if models and type(optimizer) not in ELEMENTWISE:
        raise EngineError(
            f"{class_name(optimizer)}.step: its parameters are slices of a sharded model's, and its update may need "
            "whole tensors: give this optimizer to initialize, or use one of docs/optimizers.md that is elementwise"
        )
    for model in models:
        model.hooks.unmark()


def _mark_gradients(optimizer: Optimizer, *_: Any) -> None:
    for model in _models_of(optimizer):
        model.hooks.mark()


def _models_of(optimizer: Optimizer) -> list[ShardedTensors]:
    """Return the models of which an optimizer that `initialize` did not see updates slices."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [model for model in sharded_models() if model.optimizer is not optimizer and held & model.sharded_ids]
