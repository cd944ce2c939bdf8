"""The meaning of log-softmax and the negative log-likelihood, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

from tpinit.step.calls import Operation, axis_of
from tpinit.step.terms import Term

if TYPE_CHECKING:
    from tpinit.step.meaning import Meaning

__all__ = ["LOSS", "LOSSES", "count_targets", "is_counted", "loss_gradient", "token_losses"]

Rule = Callable[["Meaning", Operation], "Term | None"]


# --- losses --------------------------------------------------------------------------------------------------


def _nll_forward(of: Meaning, call: Operation) -> tuple[Term, ...] | None:
    """The mean or the sum over tokens of `nll`, which is 0 for an ignored target."""
    scores, target, weight, reduction, ignored = call.args
    if weight is not None or len(scores.shape) != 2 or reduction not in (1, 2):
        return None
    total = of.reduce_sum(token_losses(of, scores, target, ignored), (0,))
    counted = count_targets(of, target, ignored)
    return (of.product([total, of.recip(counted)]) if reduction == 1 else total), counted


def token_losses(of: Meaning, scores: Term, target: Term, ignored: int) -> Term:
    """Return the loss [n] of each token, given log-probabilities [n, vocabulary]."""
    return of.terms.make("nll", (scores, target, ignored), (scores.shape[0],))


def count_targets(of: Meaning, target: Term, ignored: int) -> Term:
    """Return how many targets are not ignored."""
    return of.reduce_sum(is_counted(of, target, ignored), (0,))


def is_counted(of: Meaning, target: Term, ignored: int) -> Term:
    """Return for each target whether it is not ignored."""
    return of.function("ne", [target], ((True, False), Fraction(ignored)))


def _log_softmax_backward(of: Meaning, call: Operation) -> Term | None:
    """With the gradient of `nll_loss`, the gradient of the logits is one term: see `loss_gradient`."""
    grad, output, dim, _ = call.args
    if grad.op != "nll_loss_backward" or output.op != "log_softmax" or len(output.shape) != 2 or dim % 2 != 1:
        return None
    upstream, scores, target, weight, reduction, ignored, total = grad.args
    if weight is not None or scores is not output or reduction not in (1, 2) or output.args[1] != 1:
        return None
    if total is not count_targets(of, target, ignored):
        return None
    if reduction == 1:
        upstream = of.product([upstream, of.recip(count_targets(of, target, ignored))])
    return loss_gradient(of, output.args[0], target, ignored, upstream)


def loss_gradient(of: Meaning, logits: Term, target: Term, ignored: int, scale: Term) -> Term:
    """Return scale x (softmax(logits) - one-hot(target)) [n, vocabulary], 0 for an ignored target.

    `scale` is [n] or a scalar.
    """
    factor, inner = of.coefficient(of.unexpanded(scale))
    term = of.terms.make("loss_gradient", (logits, target, ignored, of.unexpanded(inner)), logits.shape)
    return of.times(factor, term)


def _log_softmax(of: Meaning, call: Operation) -> Term | None:
    return of.terms.make("log_softmax", (call.args[0], axis_of(call.args[1], call.args[0])), call.args[0].shape)


LOSS: dict[str, Rule] = {
    "_log_softmax": _log_softmax,
    "_log_softmax_backward_data": _log_softmax_backward,
}

LOSSES: dict[str, Callable[[Meaning, Operation], tuple[Term, ...] | None]] = {"nll_loss_forward": _nll_forward}
