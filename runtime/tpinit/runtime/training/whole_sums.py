"""Sums over the elements of all parameters of the whole model, for penalties and norms of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tpinit.runtime.errors import EngineError
from tpinit.runtime.groups.process_groups import GroupView
from tpinit.runtime.parallel.collectives import reduce_from_tp_region
from tpinit.runtime.planning.schema import GradientRule
from tpinit.runtime.training.gradient_parts import plain_gradient
from tpinit.runtime.training.param_state import ParamState

__all__ = ["sum_terms"]

_PREFIX = "module."


def sum_terms(
    terms: Mapping[str, torch.Tensor], states: Sequence[ParamState], tp: GroupView, device: torch.device
) -> torch.Tensor:
    """Return the sum of the elements of all terms over the whole model, a scalar that is equal on all ranks of a group.

    `terms` hold one number for each element of this rank's part of a parameter, by its name. A slice on several ranks
    counts once, and so does a replicated parameter. The gradient of the sum is that of the unsharded model: 1 for each
    element. Raises EngineError for an unknown name and for a term of another shape.
    """
    by_name = {name: state for state in states for name in state.record.names}
    once = torch.zeros((), device=device)  # terms of which this rank has the whole
    parts = torch.zeros((), device=device)
    for name, term in terms.items():
        state = by_name.get(name.removeprefix(_PREFIX))
        if state is None or term.shape != state.parameter.shape:
            raise EngineError(
                f"sum_over_parameters: the term {name!r} has shape {tuple(term.shape)}; a term belongs to a parameter "
                "of engine.named_parameters(), and has its shape on this rank"
                + (f", {tuple(state.parameter.shape)}" if state is not None else "; there is none of this name")
            )
        value = _value(plain_gradient(term), state, tp)
        if state.record.dim is None and state.record.gradient_rule is not GradientRule.PARTIAL:
            once = once + value
        else:
            parts = parts + value
    if tp.group is None:
        return once + parts
    return once + reduce_from_tp_region(parts.clone(), tp.group)


def _value(term: torch.Tensor, state: ParamState, tp: GroupView) -> torch.Tensor:
    """Return what this rank adds of a term: each element on one rank, if the ranks sum gradients of the parameter."""
    if state.record.gradient_rule is GradientRule.PARTIAL:
        if state.record.dim is None and tp.position > 0:
            term = term * 0
        term = state.counted_part(term)
    return term.sum(dtype=torch.promote_types(term.dtype, torch.float32))
