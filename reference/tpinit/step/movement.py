"""The laws of data movement and contraction: views, permutations, broadcasts, slices, concatenations, matrix products.

Each is an exact function of indices. Movement goes inside of sums and in front of constants; a permutation goes through
a contraction; a slice of a concatenation is a slice of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from tpinit.step.algebra import Algebra
from tpinit.step.terms import Shape, Term, elements

__all__ = ["Movement"]


class Movement(Algebra):
    """The algebra with data movement."""

    # --- broadcasts ------------------------------------------------------------------------------------------

    def unexpanded(self, term: Term) -> Term:
        """Return the term without an outer broadcast."""
        if term.op != "expand":
            return term
        inner = term.args[0]
        assert isinstance(inner, Term)
        return inner

    def expand(self, term: Term, shape: Shape) -> Term:
        """Return the term broadcast to `shape`, which has at least its dimensions."""
        inner = self.unexpanded(term)
        if inner.shape == shape:
            return inner
        if inner.op == "view":  # leading dimensions of size 1 are the same broadcast
            bare = self._without_leading_ones(inner)
            if bare is not inner:
                return self.expand(bare, shape)
        return self.terms.make("expand", (inner,), shape)

    def _without_leading_ones(self, term: Term) -> Term:
        kept = term.shape
        while kept and kept[0] == 1:
            kept = kept[1:]
        return self.view(term, kept) if kept != term.shape else term

    # --- views and permutations --------------------------------------------------------------------------------

    def view(self, term: Term, shape: Shape) -> Term:
        """Return the elements in the same order in another shape."""
        if term.shape == shape:
            return term
        assert elements(term.shape) == elements(shape), (term.shape, shape)
        if term.op == "view":
            return self.view(term.args[0], shape)
        if term.op == "sum":
            return self._through_sum(term, lambda part: self.view(part, shape), shape)
        if term.op == "expand":
            found = self._view_of_expand(term, shape)
            if found is not None:
                return found
        return self.terms.make("view", (term,), shape)

    def _view_of_expand(self, term: Term, shape: Shape) -> Term | None:
        """Return a view of a broadcast as a broadcast of a view, where only broadcast dimensions change."""
        inner = self.unexpanded(term)
        if inner.op == "sum":
            return self._through_sum(inner, lambda part: self.view(self.expand(part, term.shape), shape), shape)
        if inner is self.one:
            return self.expand(inner, shape)
        own = inner.shape
        while own and own[0] == 1:
            own = own[1:]
        if own != term.shape[len(term.shape) - len(own) :]:
            return None
        if own != shape[len(shape) - len(own) :]:
            return None
        return self.expand(self.view(inner, own), shape)

    def moved_as(self, moved: Term, term: Term) -> Term:
        """Return `term` moved as `moved`, a view or a permutation of a term of its shape."""
        if moved.op == "view":
            return self.view(term, moved.shape)
        return self.permute(term, moved.args[1])

    def permute(self, term: Term, dims: Sequence[int]) -> Term:
        """Return the term with its dimensions in another order: dimension i of the result is dims[i] of the term."""
        order = tuple(dims)
        if order == tuple(range(len(order))):
            return term
        shape = tuple(term.shape[dim] for dim in order)
        if term.op == "permute":
            base, before = term.args
            return self.permute(base, [before[dim] for dim in order])
        if term.op == "sum":
            return self._through_sum(term, lambda part: self.permute(part, order), shape)
        if term.op == "expand":
            inner = self.unexpanded(term)
            if inner is self.one or inner.op == "sum":
                return self._through_sum(inner, lambda part: self._permuted(part, term.shape, order, shape), shape)
        return self.terms.make("permute", (term, order), shape)

    def _permuted(self, part: Term, before: Shape, order: tuple[int, ...], shape: Shape) -> Term:
        if part is self.one:
            return self.expand(part, shape)
        return self.permute(self.expand(part, before), order)

    def _through_sum(self, term: Term, move: Callable[[Term], Term], shape: Shape) -> Term:
        """Return the sum of moved addends, each broadcast to the shape of the sum before."""
        addends = self.addends(term)
        own = term.shape
        moved = [
            (factor, self.one if part is self.one else move(self.expand(part, own))) for part, factor in addends.items()
        ]
        return self.linear(moved, shape)

    # --- slices and concatenations -----------------------------------------------------------------------------

    def slice(self, term: Term, dim: int, start: int, length: int) -> Term:
        """Return the indices [start, start + length) of one dimension."""
        if (start, length) == (0, term.shape[dim]):
            return term
        shape = (*term.shape[:dim], length, *term.shape[dim + 1 :])
        if term.op == "slice" and term.args[1] == dim:
            return self.slice(term.args[0], dim, term.args[2] + start, length)
        if term.op == "sum" and len(term.args) == 1:
            return self._through_sum(term, lambda part: self.slice(part, dim, start, length), shape)
        if term.op == "expand":
            return self._slice_of_expand(term, dim, start, length, shape)
        if term.op == "cat" and term.args[0] == dim:
            return self._slice_of_cat(term, dim, start, length)
        return self.terms.make("slice", (term, dim, start, length), shape)

    def _slice_of_expand(self, term: Term, dim: int, start: int, length: int, shape: Shape) -> Term:
        inner = self.unexpanded(term)
        own = dim - (len(term.shape) - len(inner.shape))
        if own < 0 or inner.shape[own] == 1:
            return self.expand(inner, shape)
        return self.expand(self.slice(inner, own, start, length), shape)

    def _slice_of_cat(self, term: Term, dim: int, start: int, length: int) -> Term:
        found, position = [], 0
        for part in self.cat_parts(term):
            size = part.shape[dim]
            low, high = max(start, position), min(start + length, position + size)
            if low < high:
                found.append(self.slice(part, dim, low - position, high - low))
            position += size
        return self.cat(found, dim)

    def cat(self, parts: Sequence[Term], dim: int) -> Term:
        """Return the concatenation along a dimension."""
        flat: list[Term] = []
        for part in parts:
            for one in self.cat_parts(part) if part.op == "cat" and part.args[0] == dim else (part,):
                continued = self._continued(flat[-1], one, dim) if flat else None
                if continued is not None:
                    flat[-1] = continued
                elif one.shape[dim]:
                    flat.append(one)
        if len(flat) == 1:
            return flat[0]
        assert flat, "a concatenation of nothing"
        constants = {self.coefficient(one)[0] for one in flat}
        if len(constants) == 1 and constants != {Fraction(1)}:
            return self.times(constants.pop(), self.cat([self.coefficient(one)[1] for one in flat], dim))
        size = sum(one.shape[dim] for one in flat)
        shape = (*flat[0].shape[:dim], size, *flat[0].shape[dim + 1 :])
        return self.terms.make("cat", (dim, *flat), shape)

    def pad(self, term: Term, dim: int, start: int, size: int) -> Term:
        """Return zeros of `size` along a dimension with the term from `start` on."""
        shape = (*term.shape[:dim], size, *term.shape[dim + 1 :])
        if term.shape == shape:
            return term
        inner = self.unexpanded(term)
        if inner.op == "sum":
            parts = self.addends(inner).items()
            return self.linear(
                [(factor, self.pad(self.expand(part, term.shape), dim, start, size)) for part, factor in parts], shape
            )
        return self.terms.make("pad", (term, dim, start), shape)

    def without_gaps(self, total: dict[Term, Fraction]) -> dict[Term, Fraction]:
        """Return addends with those that are zero but for disjoint parts, which leave no gap, as one concatenation."""
        groups: dict[tuple[int, Shape], dict[tuple[int, int], list[tuple[Fraction, Term]]]] = {}
        for part, factor in total.items():
            if part.op == "pad":
                inner, dim, start = part.args
                place = (start, inner.shape[dim])
                groups.setdefault((dim, part.shape), {}).setdefault(place, []).append((factor, part))
        for (dim, shape), places in groups.items():
            position = 0
            for start, length in sorted(places):
                if start != position:
                    break
                position += length
            else:
                if position == shape[dim]:
                    return self._closed(total, dim, [places[place] for place in sorted(places)])
        return total

    def _closed(
        self, total: dict[Term, Fraction], dim: int, places: list[list[tuple[Fraction, Term]]]
    ) -> dict[Term, Fraction]:
        rest = dict(total)
        parts = []
        for held in places:
            for _, part in held:
                del rest[part]
            parts.append(self.linear([(factor, part.args[0]) for factor, part in held]))
        whole = self.cat(parts, dim)
        for part, factor in self.addends(self.unexpanded(whole)).items():
            rest[part] = rest.get(part, Fraction(0)) + factor
        return self.without_gaps(rest)

    def _continued(self, one: Term, other: Term, dim: int) -> Term | None:
        """Return the slice that two neighbouring slices of one term make; None if they are not that."""
        if one.op != "slice" or other.op != "slice" or one.args[0] is not other.args[0]:
            return None
        (base, first, start, length), (_, second, next_start, next_length) = one.args, other.args
        if first != dim or second != dim or start + length != next_start:
            return None
        return self.slice(base, dim, start, length + next_length)

    def cat_layout(self, term: Term) -> tuple[int, ...] | None:
        """Return (rank, dimension, sizes of the parts) of a concatenation; None for any other term."""
        if term.op != "cat":
            return None
        dim = term.args[0]
        assert isinstance(dim, int)
        return (len(term.shape), dim, *(part.shape[dim] for part in self.cat_parts(term)))

    def cat_parts(self, term: Term) -> tuple[Term, ...]:
        """Return the parts of a concatenation."""
        return term.args[1:]

    # --- contractions ------------------------------------------------------------------------------------------

    def contract(
        self, one: Term, other: Term, batch: Sequence[tuple[int, int]], summed: Sequence[tuple[int, int]]
    ) -> Term:
        """Return the sum over pairs of dimensions of the products of elements.

        `batch` and `summed` are pairs (dimension of `one`, dimension of `other`). The dimensions of the result are the
        batch ones, the other ones of `one`, the other ones of `other`.
        """
        (factor, one), (other_factor, other) = self.coefficient(one), self.coefficient(other)
        (left, left_order), (right, right_order) = self._unpermuted(one), self._unpermuted(other)
        pairs = [(left_order[a], right_order[b]) for a, b in batch]
        sums = [(left_order[a], right_order[b]) for a, b in summed]
        free_left = [left_order[dim] for dim in range(len(one.shape)) if dim not in {a for a, _ in (*batch, *summed)}]
        free_right = [
            right_order[dim] for dim in range(len(other.shape)) if dim not in {b for _, b in (*batch, *summed)}
        ]
        wanted = [(0, a) for a, _ in pairs] + [(0, dim) for dim in free_left] + [(1, dim) for dim in free_right]
        if (left.index, sorted(pairs), sorted(sums)) > (
            right.index,
            sorted((b, a) for a, b in pairs),
            sorted((b, a) for a, b in sums),
        ):
            left, right, free_left, free_right = right, left, free_right, free_left
            renamed = dict(pairs)
            wanted = [(0, renamed[dim]) if side == 0 and dim in renamed else (1 - side, dim) for side, dim in wanted]
            pairs, sums = [(b, a) for a, b in pairs], [(b, a) for a, b in sums]
        pairs, sums = sorted(pairs), sorted(sums)
        made = (
            [(0, a) for a, _ in pairs]
            + [(0, dim) for dim in sorted(free_left)]
            + [(1, dim) for dim in sorted(free_right)]
        )
        sources = (left, right)
        shape = tuple(sources[side].shape[dim] for side, dim in made)
        result = self.terms.make("contract", (left, right, tuple(pairs), tuple(sums)), shape)
        return self.times(factor * other_factor, self.permute(result, [made.index(key) for key in wanted]))

    def _unpermuted(self, term: Term) -> tuple[Term, tuple[int, ...]]:
        """Return (base, order): dimension i of the term is dimension order[i] of the base."""
        if term.op == "permute":
            return term.args[0], term.args[1]
        return term, tuple(range(len(term.shape)))
