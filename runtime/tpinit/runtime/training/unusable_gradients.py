"""Errors for gradients that would spoil the weights: NaN or infinite ones, and replicated ones that differ by rank.

The ranks have seen in the all-reduce of the gradient norm that something is wrong; only then they gather what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from tpinit.runtime.errors import AgreementError, EngineError
from tpinit.runtime.groups.agreement import RankReport, check_reports, gather_reports
from tpinit.runtime.groups.process_groups import GroupView, ParallelGroups
from tpinit.runtime.training.param_state import ParamState

__all__ = ["nonfinite_error", "raise_unequal_gradients", "unequal_losses"]

_SHOWN = 3  # names of tensors in an error, for each rank


def nonfinite_error(
    states: Sequence[ParamState], losses: Sequence[torch.Tensor], groups: ParallelGroups, step: int
) -> EngineError:
    """Return the error of a step whose loss or gradient norm is NaN or infinite, the same on all ranks.

    All ranks of the TP group and of the DP groups that cross it must call this.
    """
    texts = {_own_rank(groups): _nonfinite_text(states, losses)}
    for group in (groups.tp, groups.dp):
        if group.group is not None:
            report = RankReport({str(rank): text for rank, text in texts.items()})
            for other in gather_reports(report, group.group):
                texts.update({int(rank): str(text) for rank, text in other.fields.items()})
    lines = [f"  rank {rank}: {text}" for rank, text in sorted(texts.items())]
    return EngineError(
        "\n".join(
            [
                f"step {step}: the loss or the gradient norm is NaN or infinite, and nothing was updated:",
                *lines,
                '  fix: look at this batch, lower the learning rate, or clip; initialize(on_nonfinite="skip") skips '
                "such updates",
            ]
        )
    )


def _own_rank(groups: ParallelGroups) -> int:
    return groups.tp.ranks[groups.tp.position]


def _nonfinite_text(states: Sequence[ParamState], losses: Sequence[torch.Tensor]) -> str:
    """Return which losses, gradients and weights of this rank are NaN or infinite."""
    found = [
        f"loss {float(loss):g} in micro batch {place + 1} of {len(losses)}"
        for place, loss in enumerate(losses)
        if not bool(torch.isfinite(loss).all())
    ]
    found += _named("gradient of", states, lambda state: state.target.grad)
    found += _named("weight", states, lambda state: state.parameter.detach())
    return "; ".join(found) or "loss, gradients and weights are finite"


def _named(
    kind: str, states: Iterable[ParamState], tensor_of: Callable[[ParamState], torch.Tensor | None]
) -> list[str]:
    names = []
    for state in states:
        tensor = tensor_of(state)
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            names.append(state.record.name)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{kind} {', '.join(names[:_SHOWN])}{more}"] if names else []


def raise_unequal_gradients(states: Sequence[ParamState], tp: GroupView, step: int) -> None:
    """Raise AgreementError, the same on all ranks of the TP group, that names the replicated gradients that differ."""
    norms: dict[str, object] = {
        f"norm of the gradient of {state.record.name}": f"{float(state.target.grad.norm()):.4g}"
        if state.target.grad is not None
        else "no gradient"
        for state in states
        if state.record.dim is None
    }
    title = (
        f"step {step}: the gradients of replicated parameters differ between the ranks of a TP group, and nothing was "
        "updated (all ranks must compute one loss from one batch, and scale gradients by one number: a norm that you "
        "compute yourself is that of one rank's part; call engine.clip_grad_norm_)"
    )
    check_reports(gather_reports(RankReport(norms), tp.group), tp.ranks, title)
    raise AgreementError(f"{title}: the norms of single gradients agree to four digits", ["gradients"])


def unequal_losses(losses: Sequence[torch.Tensor], tp: GroupView, step: int) -> AgreementError:
    """Return the error, the same on all ranks of the TP group, of losses that differ between the ranks."""
    mine = {f"loss of micro batch {place + 1}": f"{float(loss):.9g}" for place, loss in enumerate(losses)}
    title = (
        f"step {step}: the losses of the ranks of a TP group differ, and nothing was updated (all ranks must compute "
        "one loss from one batch: a sum or a norm over engine.parameters() is that of one rank's part; use "
        "engine.sum_over_parameters)"
    )
    try:
        check_reports(gather_reports(RankReport(dict(mine)), tp.group), tp.ranks, title)
    except AgreementError as error:
        return error
    return AgreementError(f"{title}: they agree to nine digits", ["losses"])
