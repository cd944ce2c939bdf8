"""The meaning of data movement and of matrix products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tpinit.step.calls import VIEWS, Args, Operation, axis_of, clamped, number_of, slice_bounds
from tpinit.step.terms import Term, broadcast

if TYPE_CHECKING:
    from tpinit.step.meaning import Meaning

__all__ = ["MOVEMENTS", "SPLITS", "every_nth", "spread"]

Rule = Callable[["Meaning", Operation], "Term | None"]


# --- movement ------------------------------------------------------------------------------------------------


def _view(of: Meaning, call: Operation) -> Term | None:
    return of.view(call.args[0], call.outputs[0].shape)


def _expand(of: Meaning, call: Operation) -> Term | None:
    return of.expand(call.args[0], call.outputs[0].shape)


def _t(of: Meaning, call: Operation) -> Term | None:
    return of.permute(call.args[0], tuple(reversed(range(len(call.args[0].shape)))))


def _transpose(of: Meaning, call: Operation) -> Term | None:
    term, *pair = call.args
    order = list(range(len(term.shape)))
    first, second = (axis_of(dim, term) for dim in pair)
    order[first], order[second] = order[second], order[first]
    return of.permute(term, order)


def _permute(of: Meaning, call: Operation) -> Term | None:
    return of.permute(call.args[0], [axis_of(dim, call.args[0]) for dim in call.args[1]])


def _slice(of: Meaning, call: Operation) -> Term | None:
    term = call.args[0]
    dim = axis_of(call.args[1], term)
    bounds = slice_bounds(call.args, term.shape[dim])
    return every_nth(of, call.args, dim) if bounds is None else of.slice(term, dim, *bounds)


def every_nth(of: Meaning, args: Args, dim: int) -> Term:
    """Return a slice with a step other than 1."""
    term, _, start, end, step = args
    size = term.shape[dim]
    low, high = clamped(start or 0, size), clamped(size if end is None else end, size)
    count = max(-(-(high - low) // step), 0)
    return of.terms.make("every nth", (term, dim, low, count, step), (*term.shape[:dim], count, *term.shape[dim + 1 :]))


def _narrow_select(of: Meaning, call: Operation) -> Term | None:
    term, dim, index = call.args
    dim = axis_of(dim, term)
    return of.view(of.slice(term, dim, index % term.shape[dim], 1), call.outputs[0].shape)


def _cat(of: Meaning, call: Operation) -> Term | None:
    parts = [part for part in call.args[0] if part.shape != (0,)]
    return of.cat(parts, axis_of(call.args[1], parts[0])) if parts else None


def _stack(of: Meaning, call: Operation) -> Term | None:
    parts, dim = call.args[0], call.args[1] % len(call.outputs[0].shape)
    return of.cat([of.view(part, (*part.shape[:dim], 1, *part.shape[dim:])) for part in parts], dim)


def _pieces(of: Meaning, call: Operation) -> tuple[Term, ...]:
    term = call.args[0]
    dim = axis_of(call.args[2] if len(call.args) > 2 else 0, term)
    found, start = [], 0
    for value in call.outputs:
        found.append(of.slice(term, dim, start, value.shape[dim]))
        start += value.shape[dim]
    return tuple(found)


def _unbind(of: Meaning, call: Operation) -> tuple[Term, ...]:
    term, dim = call.args[0], axis_of(call.args[1], call.args[0])
    return tuple(of.view(of.slice(term, dim, index, 1), value.shape) for index, value in enumerate(call.outputs))


def _slice_backward(of: Meaning, call: Operation) -> Term | None:
    grad, sizes, dim, start, end, step = call.args
    dim %= len(sizes)
    bounds = slice_bounds((None, dim, start, end, step), sizes[dim])
    if bounds is None:
        return spread(of, grad, dim, clamped(start, sizes[dim]), step, sizes[dim])
    if bounds[1] != grad.shape[dim]:
        raise ValueError(f"the gradient of a slice of {bounds[1]} has {grad.shape[dim]}")
    return of.pad(grad, dim, bounds[0], sizes[dim])


def spread(of: Meaning, grad: Term, dim: int, start: int, step: int, size: int) -> Term:
    """Return zeros of `size` along a dimension with the term at every `step`-th index from `start` on."""
    shape = (*grad.shape[:dim], size, *grad.shape[dim + 1 :])
    return of.terms.make("spread", (grad, dim, start, step), shape)


def _select_backward(of: Meaning, call: Operation) -> Term | None:
    grad, sizes, dim, index = call.args
    dim %= len(sizes)
    one = of.view(grad, (*grad.shape[:dim], 1, *grad.shape[dim:]))
    return of.pad(one, dim, index % sizes[dim], sizes[dim])


# --- contractions --------------------------------------------------------------------------------------------


def _mm(of: Meaning, call: Operation) -> Term | None:
    return of.contract(call.args[0], call.args[1], [], [(1, 0)])


def _bmm(of: Meaning, call: Operation) -> Term | None:
    return of.contract(call.args[0], call.args[1], [(0, 0)], [(2, 1)])


def _plus_product(batched: bool) -> Rule:
    def rule(of: Meaning, call: Operation) -> Term | None:
        base, one, other, beta, alpha = call.args
        factor, scale = number_of(beta), number_of(alpha)
        if factor is None or scale is None:
            return None
        product = of.contract(one, other, [(0, 0)] if batched else [], [(2, 1) if batched else (1, 0)])
        return of.linear([(factor, base), (scale, product)], broadcast([base.shape, product.shape]))

    return rule


MOVEMENTS: dict[str, Rule] = {
    **dict.fromkeys((*VIEWS, "flatten"), _view),
    "expand": _expand,
    "t": _t,
    "transpose": _transpose,
    "permute": _permute,
    "slice": _slice,
    "select": _narrow_select,
    "cat": _cat,
    "stack": _stack,
    "slice_backward": _slice_backward,
    "select_backward": _select_backward,
    "embedding": lambda of, call: of.terms.make("embedding", call.args[:2], call.outputs[0].shape),
    "mm": _mm,
    "bmm": _bmm,
    "addmm": _plus_product(batched=False),
    "baddbmm": _plus_product(batched=True),
}

SPLITS: dict[str, Callable[[Meaning, Operation], tuple[Term, ...]]] = {
    **dict.fromkeys(("split", "split_with_sizes", "chunk"), _pieces),
    "unbind": _unbind,
}
