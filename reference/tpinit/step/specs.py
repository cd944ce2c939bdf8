"""The labels of torch's operations, by class: elementwise, contraction, reduction, normalization, attention, embedding.

`spec_of` gives the labels for one operation from the dimensions of its arguments. An operation that is not here has no
labels, and is lifted where all its operands are replicated, else stuck.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

from tpinit.step.calls import FUNCTIONS, axes
from tpinit.step.labels import LabelSpec
from tpinit.step.terms import Shape

__all__ = ["KERNELS", "spec_of"]

Shapes = Sequence[Shape]
KERNELS = frozenset(
    ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward")
)
"""Attention in one operation: its labels are an assumption about it, which a test compares with its decomposition."""

# In which operands, together, an elementwise operation is linear; the others are in none.
_LINEAR: dict[str, tuple[tuple[int, ...], ...]] = {
    "add": ((0, 1),),
    "sub": ((0, 1),),
    "rsub": ((0, 1),),
    "neg": ((0,),),
    "mul": ((0,), (1,)),
    "div": ((0,),),
    "lerp": ((0, 1),),
    "addcmul": ((0, 1), (0, 2)),
    "addcdiv": ((0, 1),),
    "where": ((1, 2),),
    "silu_backward": ((0,),),
    "gelu_backward": ((0,),),
    "tanh_backward": ((0,),),
    "sigmoid_backward": ((0,),),
    "threshold_backward": ((0,),),
    **dict.fromkeys(
        ("softplus_backward", "elu_backward", "leaky_relu_backward", "mish_backward", "hardtanh_backward"), ((0,),)
    ),
    "_to_copy": ((0,),),
}
_OTHER_ELEMENTWISE = (
    *FUNCTIONS,
    "pow",
    "square",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "masked_fill",
    "ones_like",
    "zeros_like",
    "full_like",
)
_SOFTMAX = {
    "_softmax": (),
    "_log_softmax": (),
    "_softmax_backward_data": ((0,),),
    "_log_softmax_backward_data": ((0,),),
}


def spec_of(name: str, args: Sequence[Any], shapes: Shapes) -> LabelSpec | None:
    """Return the labels of an operation; None if it has none.

    `args` are its arguments, where tensors count for nothing; `shapes` are the shapes of its tensor operands, in order,
    of the whole values: only their number of dimensions, and which have size 1 where they broadcast, is read.
    """
    if name in _LINEAR or name in _OTHER_ELEMENTWISE:
        return _elementwise(shapes, _LINEAR.get(name, ()))
    if name in _SOFTMAX:
        rank = len(shapes[0])
        dim = next(arg for arg in args if type(arg) is int) % rank
        labels = tuple(string.ascii_lowercase[:rank])
        return _spec([labels] * len(shapes), [labels], _SOFTMAX[name], {labels[dim]})
    rule = _RULES.get(name)
    return rule(args, shapes) if rule is not None else None


def _spec(
    operands: Sequence[tuple[str, ...]],
    results: Sequence[tuple[str, ...]],
    linear: Sequence[Sequence[int]] = (),
    mixed: set[str] | frozenset[str] = frozenset(),
) -> LabelSpec:
    return LabelSpec(tuple(operands), tuple(results), tuple(map(frozenset, linear)), frozenset(mixed))


def _elementwise(shapes: Shapes, linear: Sequence[Sequence[int]]) -> LabelSpec:
    operands, result = _broadcast(shapes, string.ascii_lowercase)
    return _spec(operands, [result], linear)


def _broadcast(shapes: Shapes, alphabet: str) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Return the labels of operands that broadcast, "" for a dimension of size 1 that does, and those of the result."""
    rank = max(map(len, shapes))
    labels = tuple(alphabet[:rank])
    sizes = [max(shape[dim - rank] for shape in shapes if len(shape) >= rank - dim) for dim in range(rank)]
    operands = [
        tuple(
            "" if own == 1 and size != 1 else label
            for own, size, label in zip(shape, sizes[rank - len(shape) :], labels[rank - len(shape) :], strict=True)
        )
        for shape in shapes
    ]
    return operands, labels


def _mm(_: Sequence[Any], __: Shapes) -> LabelSpec:
    return _spec([("m", "k"), ("k", "n")], [("m", "n")], [(0,), (1,)])


def _bmm(_: Sequence[Any], __: Shapes) -> LabelSpec:
    return _spec([("b", "m", "k"), ("b", "k", "n")], [("b", "m", "n")], [(0,), (1,)])


def _reduction(args: Sequence[Any], shapes: Shapes) -> LabelSpec:
    labels = tuple(string.ascii_lowercase[: len(shapes[0])])
    dims = axes(args[1] if len(args) > 2 else None, len(labels))
    keeps = len(args) > 2 and args[2] is True
    kept = tuple("" if dim in dims else label for dim, label in enumerate(labels) if keeps or dim not in dims)
    return _spec([labels], [kept], [(0,)])


def _layer_norm(args: Sequence[Any], shapes: Shapes) -> LabelSpec:
    outer, inner = _norm_labels(args[1], shapes[0])
    operands = [outer + inner, *[inner] * (len(shapes) - 1)]
    statistics = outer + ("",) * len(inner)
    return _spec(operands, [outer + inner, statistics, statistics], (), set(inner))


def _layer_norm_backward(args: Sequence[Any], shapes: Shapes) -> LabelSpec:
    outer, inner = _norm_labels(args[2], shapes[0])
    statistics = outer + ("",) * len(inner)
    operands = [outer + inner, outer + inner, statistics, statistics, *[inner] * (len(shapes) - 4)]
    return _spec(operands, [outer + inner, inner, inner], [(0,)], set(inner))


def _norm_labels(normalized: Sequence[int], shape: Shape) -> tuple[tuple[str, ...], tuple[str, ...]]:
    labels = tuple(string.ascii_lowercase[: len(shape)])
    split = len(shape) - len(normalized)
    return labels[:split], labels[split:]


def _attention(args: Sequence[Any], shapes: Shapes) -> LabelSpec:
    """A result [batch, head, query, feature] of each head by itself; the statistics are [batch, head, query]."""
    operands = [("b", "h", "s", "d"), ("b", "h", "t", "d"), ("b", "h", "t", "e"), *_mask(shapes[3:])]
    return _spec(operands, [("b", "h", "s", "e"), ("b", "h", "s")], (), {"s", "t", "d", "e"})


def _attention_backward(args: Sequence[Any], shapes: Shapes) -> LabelSpec:
    query, key, value, result = ("b", "h", "s", "d"), ("b", "h", "t", "d"), ("b", "h", "t", "e"), ("b", "h", "s", "e")
    operands = [result, query, key, value, result, ("b", "h", "s"), *_mask(shapes[6:])]
    return _spec(operands, [query, key, value], [(0,)], {"s", "t", "d", "e"})


def _mask(shapes: Shapes) -> list[tuple[str, ...]]:
    return [
        tuple("" if size == 1 else label for size, label in zip(shape, "bhst"[4 - len(shape) :], strict=True))
        for shape in shapes
    ]


def _embedding(_: Sequence[Any], shapes: Shapes) -> LabelSpec:
    ids = tuple(string.ascii_lowercase[: len(shapes[1])])
    return _spec([("V", "F"), ids], [(*ids, "F")], [(0,)], {"V"})


def _embedding_backward(args: Sequence[Any], shapes: Shapes) -> LabelSpec | None:
    if args[4]:  # gradients that are divided by how often an id occurs
        return None
    ids = tuple(string.ascii_lowercase[: len(shapes[1])])
    return _spec([(*ids, "F"), ids], [("V", "F")], [(0,)])


def _cumulative(args: Sequence[Any], shapes: Shapes) -> LabelSpec:
    labels = tuple(string.ascii_lowercase[: len(shapes[0])])
    return _spec([labels], [labels], [(0,)], {labels[args[1] % len(labels)]})


def _index_add(args: Sequence[Any], shapes: Shapes) -> LabelSpec | None:
    """Self with alpha x source added at the indices of one dimension, which add up where they are equal."""
    labels = tuple(string.ascii_lowercase[: len(shapes[0])])
    dim = args[1] % len(labels)
    source = (*labels[:dim], "N", *labels[dim + 1 :])
    return _spec([labels, ("N",), source], [labels], [(0, 2)], {labels[dim], "N"})


def _index_select(args: Sequence[Any], shapes: Shapes) -> LabelSpec:
    labels = tuple(string.ascii_lowercase[: len(shapes[0])])
    dim = args[1] % len(labels)
    return _spec([labels, ("N",)], [(*labels[:dim], "N", *labels[dim + 1 :])], [(0,)], {labels[dim]})


def _index(args: Sequence[Any], shapes: Shapes) -> LabelSpec | None:
    """Tensors of indices, side by side, replace their dimensions by those to which they broadcast."""
    found = _indexed(args[1], len(shapes[0]), shapes[1:])
    if found is None:
        return None
    labels, places, index_labels, new = found
    result = (*labels[: places[0]], *new, *labels[places[-1] + 1 :])
    return _spec([labels, *index_labels], [result], [(0,)], {labels[place] for place in places})


def _index_put(args: Sequence[Any], shapes: Shapes) -> LabelSpec | None:
    """Values are written, or added, at indices: linear in what they are written to and in the values together."""
    found = _indexed(args[1], len(shapes[0]), shapes[1:-1])
    if found is None:
        return None
    labels, places, index_labels, new = found
    value = (*labels[: places[0]], *new, *labels[places[-1] + 1 :])
    if len(shapes[-1]) != len(value):
        return None
    mixed = {labels[place] for place in places}
    return _spec([labels, *index_labels, value], [labels], [(0, len(shapes) - 1)], mixed | set(new))


def _indexed(indices: Any, rank: int, shapes: Shapes) -> Any:
    labels = tuple(string.ascii_lowercase[:rank])
    places = [place for place, index in enumerate(indices) if index is not None]
    if not places or places != list(range(places[0], places[-1] + 1)):
        return None
    held, new = _broadcast(shapes, string.ascii_uppercase)
    return labels, places, held, new


def _gather(args: Sequence[Any], shapes: Shapes) -> LabelSpec | None:
    """Along one dimension the indices choose; along the others they are as many as the elements."""
    labels, rank = tuple(string.ascii_lowercase[: len(shapes[0])]), len(shapes[0])
    dim = args[1] % rank
    if any(shapes[0][place] != shapes[1][place] for place in range(rank) if place != dim):
        return None
    index = (*labels[:dim], "N", *labels[dim + 1 :])
    return _spec([labels, index], [index], [(0,)], {labels[dim], "N"})


def _scatter_add(args: Sequence[Any], shapes: Shapes) -> LabelSpec | None:
    labels, rank = tuple(string.ascii_lowercase[: len(shapes[0])]), len(shapes[0])
    dim = args[1] % rank
    if shapes[1] != shapes[2] or any(shapes[0][place] != shapes[1][place] for place in range(rank) if place != dim):
        return None
    index = (*labels[:dim], "N", *labels[dim + 1 :])
    return _spec([labels, index, index], [labels], [(0, 2)], {labels[dim], "N"})


_RULES: dict[str, Callable[[Sequence[Any], Shapes], LabelSpec | None]] = {
    "mm": _mm,
    "bmm": _bmm,
    "sum": _reduction,
    "mean": _reduction,
    "native_layer_norm": _layer_norm,
    "native_layer_norm_backward": _layer_norm_backward,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "embedding": _embedding,
    "embedding_dense_backward": _embedding_backward,
    "cumsum": _cumulative,
    "index_add": _index_add,
    "index_select": _index_select,
    "index": _index,
    "index_put": _index_put,
    "gather": _gather,
    "scatter_add": _scatter_add,
}
