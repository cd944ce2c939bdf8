"""What torch's operations and the collectives compute, on exact arrays: written from torch's documentation."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from property.step.step_arrays import (
    Array,
    array,
    contracted,
    elementwise,
    exact,
    inverse,
    looked_up,
    padded,
    rows,
    table_gradient,
    total,
)


def _as_array(value: Any) -> Array:
    return value if isinstance(value, np.ndarray) else exact(value)


def _sum(x: Array, dims: Any, keepdim: bool, _: Any) -> Array:
    axes = tuple(dim % x.ndim for dim in dims) if dims else tuple(range(x.ndim))
    found = total(x, axes)
    return found.reshape([1 if dim in axes else size for dim, size in enumerate(x.shape)]) if keepdim else found


def _mean(x: Array, dims: Any, keepdim: bool, dtype: Any) -> Array:
    found = _sum(x, dims, keepdim, dtype)
    count = x.size // found.size if found.size else 0
    return exact(found * Fraction(1, count))


def _transposed(x: Array, one: int, other: int) -> Array:
    return np.swapaxes(x, one, other)


def _sliced(x: Array, dim: int, start: int, end: int, step: int) -> Array:
    return np.moveaxis(np.moveaxis(x, dim, 0)[start:end:step], 0, dim)


def _split(x: Array, size: int, dim: int) -> list[Array]:
    return [_sliced(x, dim, start, start + size, 1) for start in range(0, x.shape[dim], size)]


def _slice_gradient(grad: Array, sizes: Any, dim: int, start: int, end: int, step: int) -> Array:
    if grad.shape[dim] != end - start or end > sizes[dim] or step != 1:
        raise ValueError("not the gradient of this slice")
    return padded(grad, dim, start, sizes[dim])


def _cat(parts: Any, dim: int) -> Array:
    return np.concatenate(parts, axis=dim)


def _expand(x: Array, size: Any, _: bool) -> Array:
    shape = [
        own if wanted == -1 else wanted for own, wanted in zip((1,) * (len(size) - x.ndim) + x.shape, size, strict=True)
    ]
    return np.broadcast_to(x, shape)


def _filled(x: Array, mask: Array, value: Any) -> Array:
    return np.broadcast_to(elementwise("where", [mask, _as_array(value), x]), x.shape) + exact(0)


def _lerp(start: Array, end: Array, weight: Any) -> Array:
    return exact(start + _as_array(weight) * (end - start))


def _mm(one: Array, other: Array) -> Array:
    if one.ndim != 2 or other.ndim != 2:
        raise ValueError("mm is of matrices")
    return contracted(one, other, [], [(1, 0)])


def _table_gradient_of(grad: Array, ids: Array, rows: int, padding: int, _: Any) -> Array:
    if grad.shape[:-1] != ids.shape:
        raise ValueError("not a gradient of these ids")
    return table_gradient(grad, ids, rows, padding)


def _t(x: Array) -> Array:
    if x.ndim > 2:
        raise ValueError("t is of matrices")
    return x.T


def _bmm(one: Array, other: Array) -> Array:
    if one.ndim != 3 or other.ndim != 3 or one.shape[0] != other.shape[0]:
        raise ValueError("bmm is of batches of matrices")
    return contracted(one, other, [(0, 0)], [(2, 1)])


def _addmm(base: Array, one: Array, other: Array, beta: int, alpha: int) -> Array:
    product = _mm(one, other)
    if np.broadcast_shapes(base.shape, product.shape) != product.shape:
        raise ValueError("the addend does not broadcast to the product")
    return exact(beta * base + alpha * product)


def _index_add(x: Array, dim: int, index: Array, source: Array, alpha: int) -> Array:
    found = np.moveaxis(exact(x), dim, 0)
    if np.moveaxis(source, dim, 0).shape != (len(index), *found.shape[1:]):
        raise ValueError("the source has another shape")
    for place, row in zip(index, np.moveaxis(source, dim, 0), strict=True):
        found[int(place)] = found[int(place)] + alpha * row
    return np.moveaxis(found, 0, dim)


def _index_select(x: Array, dim: int, index: Array) -> Array:
    return x.take([int(place) for place in index], axis=dim)


def _gather(x: Array, dim: int, index: Array, _: bool) -> Array:
    return np.take_along_axis(x, index.astype(int), axis=dim)


def _select_gradient(grad: Array, sizes: Any, dim: int, index: int) -> Array:
    if len(sizes) != grad.ndim + 1 or (*sizes[:dim], *sizes[dim + 1 :]) != grad.shape:
        raise ValueError("not the gradient of this index")
    return padded(np.expand_dims(grad, dim), dim, index, sizes[dim])


def _amax(x: Array, dims: Any, _: bool) -> Array:
    return array(np.max(x, axis=dims[0]))


def _scatter_add(x: Array, dim: int, index: Array, source: Array) -> Array:
    found = exact(x)
    for place in np.ndindex(source.shape):
        at = list(place)
        at[dim] = int(index[place])
        found[tuple(at)] = found[tuple(at)] + source[place]
    return found


OPERATIONS: dict[str, Any] = {
    "add": lambda x, y, alpha: exact(x + alpha * _as_array(y)),
    "sub": lambda x, y, alpha: exact(x - alpha * _as_array(y)),
    "mul": lambda x, y: exact(x * _as_array(y)),
    "div": lambda x, y: exact(x * inverse(_as_array(y))),
    "amax": _amax,
    "scatter_add": _scatter_add,
    "squeeze": lambda x, dim: x.squeeze(dim),
    "log": lambda x: elementwise("log", [x]),
    "ne": lambda x, y: elementwise("ne", [x], [y]),
    "rsub": lambda x, y, alpha: exact(_as_array(y) - alpha * x),
    "index_add": _index_add,
    "index_select": _index_select,
    "gather": _gather,
    "select_backward": _select_gradient,
    "neg": lambda x: exact(-x),
    "pow": lambda x, exponent: exact(x**exponent),
    "lerp": _lerp,
    "addcmul": lambda x, y, z, value: exact(x + value * y * z),
    "where": lambda c, x, y: elementwise("where", [c, _as_array(x), _as_array(y)]),
    "masked_fill": _filled,
    "silu": lambda x: elementwise("silu", [x], [(True,)]),
    "exp": lambda x: elementwise("exp", [x], [(True,)]),
    "silu_backward": lambda grad, x: elementwise("silu_backward", [grad, x]),
    "_softmax": lambda x, dim, _: rows("_softmax", [x], dim),
    "_softmax_backward_data": lambda grad, y, dim, _: rows("_softmax_backward_data", [grad, y], dim),
    "ge": lambda x, y: elementwise("ge", [x], [y]),
    "lt": lambda x, y: elementwise("lt", [x], [y]),
    "bitwise_and": lambda x, y: exact(x * y),
    "bitwise_not": lambda x: exact(1 - x),
    "clone": lambda x: x,
    "ones_like": lambda x: exact(np.ones(x.shape, dtype=int)),
    "sum": _sum,
    "mean": _mean,
    "mm": _mm,
    "bmm": _bmm,
    "addmm": _addmm,
    "view": lambda x, shape: x.reshape(shape),
    "unsqueeze": lambda x, dim: np.expand_dims(x, dim),
    "permute": lambda x, dims: x.transpose(dims),
    "transpose": _transposed,
    "t": _t,
    "expand": _expand,
    "slice": _sliced,
    "select": lambda x, dim, index: x.take(index, axis=dim) if x.ndim > 1 else exact(x.take(index, axis=dim)),
    "split": _split,
    "unbind": lambda x, dim: [exact(one) for one in np.moveaxis(x, dim, 0)],
    "cat": _cat,
    "stack": lambda parts, dim: np.stack(parts, axis=dim),
    "slice_backward": _slice_gradient,
    "embedding": lambda table, ids, *_: looked_up(table, ids) if table.ndim == 2 else 0 / 0,
    "embedding_dense_backward": _table_gradient_of,
}


def collective(name: str, sent: list[Array]) -> list[list[Array]]:
    """Return what every rank receives. Raises ValueError if the tensors do not fit."""
    ranks = len(sent)
    if name != "collective.all_gather" and len({one.shape for one in sent}) > 1:
        raise ValueError("the ranks send different shapes")
    if name == "collective.all_gather":
        return [list(sent) for _ in range(ranks)]
    if name == "collective.all_gather_into":
        return [[np.concatenate(sent, axis=0)] for _ in range(ranks)]
    if name == "collective.broadcast":
        return [[sent[0]] for _ in range(ranks)]
    together = sent[0]
    for one in sent[1:]:
        together = exact(together + one)
    if name == "collective.all_reduce":
        return [[together] for _ in range(ranks)]
    length, left = divmod(together.shape[0], ranks)
    if left:
        raise ValueError("the first dimension does not divide")
    return [[together[rank * length : (rank + 1) * length]] for rank in range(ranks)]
