"""The value of a term, and whether a claim is true of the tensors of the ranks: an oracle that lifts nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from property.step.step_arrays import (
    Array,
    array,
    contracted,
    elementwise,
    exact,
    indices,
    inverse,
    looked_up,
    padded,
    part,
    rows,
    table_gradient,
    total,
)
from property.step.step_operations import OPERATIONS
from tpinit.step.layouts import Filler, Joined, Kind, Lifted, LocalIds, Masked, RangeMask, Stuck
from tpinit.step.terms import Term


class Values:
    """The values of terms, given those of the leaves."""

    def __init__(self, leaves: dict[str, Array]) -> None:
        self._leaves = leaves
        self._known: dict[Term, Array] = {}

    def of(self, term: Term) -> Array:
        """Return the value of a term. Raises ValueError for an operation that has no meaning here."""
        if term not in self._known:
            found = array(self._made(term))
            if found.shape != term.shape:
                raise AssertionError(f"{term} has shape {term.shape}, and its value {found.shape}")
            self._known[term] = found
        return self._known[term]

    def _made(self, term: Term) -> Array:
        args = term.args
        held = [self.of(arg) for arg in args if isinstance(arg, Term)]
        rest: list[Any] = [arg for arg in args if not isinstance(arg, Term)]
        made = getattr(self, f"_{term.op.lstrip('_')}", None)
        if made is not None:
            return made(term, held, rest)
        if term.op in ("_softmax", "_softmax_backward_data"):
            return rows(term.op, held, rest[0])
        return elementwise(term.op, held, rest)

    def _leaf(self, term: Term, _: Any, rest: Any) -> Array:
        return self._leaves[rest[1]]

    def _one(self, *_: Any) -> Array:
        return exact(1)

    def _sum(self, term: Term, _: Any, rest: Any) -> Array:
        found = exact(np.zeros(term.shape, dtype=int))
        for factor, addend in rest:
            found = found + factor * self.of(addend)
        return exact(found)

    def _product(self, term: Term, held: Any, _: Any) -> Array:
        found = exact(1)
        for one in held:
            found = exact(found * one)
        return found

    def _recip(self, _: Any, held: Any, __: Any) -> Array:
        return inverse(held[0])

    def _reduce_sum(self, _: Any, held: Any, rest: Any) -> Array:
        return total(held[0], rest[0])

    def _expand(self, term: Term, held: Any, _: Any) -> Array:
        return np.broadcast_to(held[0], term.shape)

    def _view(self, term: Term, held: Any, _: Any) -> Array:
        return held[0].reshape(term.shape)

    def _permute(self, _: Any, held: Any, rest: Any) -> Array:
        return held[0].transpose(rest[0])

    def _slice(self, _: Any, held: Any, rest: Any) -> Array:
        dim, start, length = rest
        return held[0].take(range(start, start + length), axis=dim)

    def _cat(self, _: Any, held: Any, rest: Any) -> Array:
        return np.concatenate(held, axis=rest[0])

    def _pad(self, term: Term, held: Any, rest: Any) -> Array:
        return padded(held[0], rest[0], rest[1], term.shape[rest[0]])

    def _contract(self, _: Any, held: Any, rest: Any) -> Array:
        return contracted(held[0], held[1], *rest)

    def _index_add(self, _: Any, held: Any, rest: Any) -> Array:
        return OPERATIONS["index_add"](held[0], rest[0], held[1], held[2], rest[1])

    def _index_select(self, _: Any, held: Any, rest: Any) -> Array:
        return OPERATIONS["index_select"](held[0], rest[0], held[1])

    def _gather(self, _: Any, held: Any, rest: Any) -> Array:
        return OPERATIONS["gather"](held[0], rest[0], held[1], rest[1])

    def _log_softmax(self, _: Any, held: Any, rest: Any) -> Array:
        sums = total(elementwise("exp", held), (rest[0],))
        return exact(held[0] - np.expand_dims(elementwise("log", [sums]), rest[0]))

    def _nll(self, _: Any, held: Any, rest: Any) -> Array:
        scores, target = held
        return exact([0 if at == rest[0] else -scores[row, int(at)] for row, at in enumerate(target)])

    def _loss_gradient(self, term: Term, held: Any, rest: Any) -> Array:
        logits, target, scale = held
        powers = elementwise("exp", [logits])
        found = exact(powers * np.expand_dims(inverse(total(powers, (1,))), 1))
        for row, at in enumerate(target):
            if at == rest[0]:
                found[row] = exact(np.zeros(logits.shape[1], dtype=int))
            else:
                found[row, int(at)] -= 1
        return exact(found * (np.expand_dims(scale, 1) if scale.ndim else scale))

    def _embedding(self, _: Any, held: Any, __: Any) -> Array:
        return looked_up(*held)

    def _embedding_dense_backward(self, _: Any, held: Any, rest: Any) -> Array:
        return table_gradient(*held, rest[0], rest[1])


def wrong(claim: Any, held: list[Array], terms: Values) -> str:
    """Return in which way a claim about a tensor of each rank is false; empty if it holds."""
    if isinstance(claim, Lifted):
        return _wrong_parts(claim, held, terms.of(claim.term))
    if isinstance(claim, RangeMask):
        return _wrong_mask(claim, _like(held, terms.of(claim.ids)), terms.of(claim.ids))
    if isinstance(claim, LocalIds):
        return _wrong_ids(claim, _like(held, terms.of(claim.ids)), terms.of(claim.ids))
    if isinstance(claim, Masked):
        return _wrong_rows(claim, held, terms.of(claim.term), terms.of(claim.ids))
    return _wrong_join(claim, held, terms) if isinstance(claim, Joined) else ""


def _like(held: list[Array], ids: Array) -> list[Array]:
    """Return tensors without the dimension of size 1 that broadcasts them along the features."""
    return [own.reshape(ids.shape) if own.shape == (*ids.shape, 1) else own for own in held]


def _unstacked(claim: Any, own: Array, dim: int, rank: int, terms: Values) -> Array:
    """Return a part of a stack without the new dimension, where the claim is about the tensor before."""
    if isinstance(claim, Lifted):
        shape = claim.local_shape(rank)
    elif isinstance(claim, (RangeMask, LocalIds)):
        shape = terms.of(claim.ids).shape
    else:
        return own
    return own.squeeze(dim) if own.ndim == len(shape) + 1 and own.shape[dim] == 1 else own


def _wrong_join(claim: Joined, held: list[Array], terms: Values) -> str:
    position = 0
    for size, part_of in zip(claim.sizes, claim.parts, strict=True):
        own = [one.take(range(position, position + size), axis=claim.dim) for one in held]
        position += size
        try:
            found = part_of()
        except Stuck:
            continue
        if isinstance(found, Filler) and found.is_zero and any(np.any(one != 0) for one in own):
            return f"a gap is not 0: {own}"
        own = [_unstacked(found, one, claim.dim, rank, terms) for rank, one in enumerate(own)]
        false = wrong(found, own, terms)
        if false:
            return false
    return "" if all(one.shape[claim.dim] == position for one in held) else f"the parts have {position} elements"


def _wrong_parts(claim: Lifted, held: list[Array], whole: Array) -> str:
    if claim.kind is Kind.SHARD:
        for rank, own in enumerate(held):
            if not _equal(own, part(whole, claim.index, rank)):
                return f"rank {rank} holds {own.tolist()}, and the claim says {part(whole, claim.index, rank).tolist()}"
        return ""
    total = exact(np.zeros(whole.shape, dtype=int))
    for rank, own in enumerate(held):
        places = [
            range(size) if one is None else indices(one[rank])
            for size, one in zip(whole.shape, claim.index, strict=True)
        ]
        if own.shape != tuple(map(len, places)):
            return f"rank {rank} has shape {own.shape}"
        for at, place in zip(np.ndindex(own.shape), itertools.product(*places), strict=True):
            total[place] += own[at]
    return "" if _equal(total, whole) else f"the addends make {total.tolist()}, and the claim says {whole.tolist()}"


def _equal(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.all(one == other))


def _wrong_mask(claim: RangeMask, held: list[Array], ids: Array) -> str:
    for rank, ((low, high), own) in enumerate(zip(claim.ranges, held, strict=True)):
        inside = elementwise("ge", [ids], [low]) * elementwise("lt", [ids], [high])
        if not _equal(own, exact(1 - inside if claim.negated else inside)):
            return f"the mask of rank {rank} is {own.tolist()}"
    return ""


def _wrong_ids(claim: LocalIds, held: list[Array], ids: Array) -> str:
    for rank, ((low, high), own) in enumerate(zip(claim.ranges, held, strict=True)):
        if own.shape != ids.shape:
            return f"rank {rank} has shape {own.shape}"
        for place in np.ndindex(ids.shape):
            inside = low <= ids[place] < high
            # Without a range (low, low) it is the plain difference, which has no bound yet.
            if (inside or (not claim.zeroed and low == high)) and own[place] != ids[place] - low:
                return f"rank {rank} has the id {own[place]} for {ids[place]}"
            if claim.zeroed and not inside and own[place] != 0:
                return f"rank {rank} has the id {own[place]} for {ids[place]}, which is outside"
    return ""


def _wrong_rows(claim: Masked, held: list[Array], whole: Array, ids: Array) -> str:
    for rank, ((low, high), own) in enumerate(zip(claim.ranges, held, strict=True)):
        if own.shape != whole.shape:
            return f"rank {rank} has shape {own.shape}"
        for place in np.ndindex(ids.shape):
            inside = low <= ids[place] < high
            if inside and not _equal(own[place], whole[place]):
                return f"rank {rank} has other values in its range"
            if claim.zeroed and not inside and np.any(own[place] != 0):
                return f"rank {rank} is not zero outside of its range"
    return ""
