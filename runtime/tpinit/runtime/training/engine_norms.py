"""Methods of the engine that compute over the whole model: clipping by its gradient's norm, sums over its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from tpinit.runtime.errors import EngineError
from tpinit.runtime.training.clipping import clip_gradients
from tpinit.runtime.training.whole_sums import sum_terms

if TYPE_CHECKING:
    from tpinit.runtime.training.engine import Engine

__all__ = ["before_norm", "clip_grad_norm_", "get_global_grad_norm", "sum_over_parameters"]


def before_norm(engine: Engine, what: str) -> None:
    """Raise EngineError for a norm of addends, AgreementError on all ranks if one of them does something else."""
    if engine._hooks.addends:
        raise EngineError(
            f"{what} was called between the micro batches of an update, whose gradients are not summed yet: call it "
            "between the last backward and engine.step(), or clip with gradient_clipping in the config"
        )
    engine._call_check.compare_call(what, engine.module)


def clip_grad_norm_(
    engine: Engine, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> torch.Tensor:
    """Scale the gradients so that the p-norm of the whole model's gradient is at most `max_norm`.

    Returns the norm before, a float32 scalar that is equal on all ranks. Call it on all ranks, behind a backward and
    before the step. Raises EngineError between the micro batches of an update, for a p that is not positive, and for a
    norm that is NaN or infinite if `error_if_nonfinite` is true; AgreementError on all ranks if one of them calls
    something else.
    """
    before_norm(engine, "clip_grad_norm_")
    scale = engine.loss_scale() if engine._awaits_step else 1.0
    return clip_gradients(engine._tensors, max_norm, norm_type, error_if_nonfinite, scale)


def get_global_grad_norm(engine: Engine) -> float | None:
    """Return the 2-norm of the whole model's gradient at the last update, before clipping; None before any."""
    return None if engine._norm is None else float(engine._norm)


def sum_over_parameters(engine: Engine, terms: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the sum of the elements of all terms over the whole model: for penalties and norms of weights.

    `terms` hold one number for each element of this rank's part of a parameter, by its name in `named_parameters`. The
    sum is a scalar, equal on all ranks of a TP group, and its gradient is that of the unsharded model. A rank's own sum
    would be that of its part. Call it on all ranks. Raises EngineError for an unknown name and for another shape;
    AgreementError on all ranks if one of them calls something else, or has other terms.
    """
    engine._call_check.meet(f"sum_over_parameters of {', '.join(map(str, terms))}", engine.module)
    with engine._tensors.own_nodes.closed():
        return sum_terms(terms, engine._param_states, engine.groups.tp, engine.device)
