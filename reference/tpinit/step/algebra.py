"""The ring laws of terms: sums with coefficients, products, powers, sums over dimensions.

A sum is `sum((c1, t1), (c2, t2), ...)`: no term is a sum, no coefficient 0, terms in the order of their indices. A
product is `product(t1, t2, ...)`: no factor is a product or has a coefficient. A value that broadcasts is held
unexpanded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import prod

from tpinit.step.terms import Shape, Term, Terms, broadcast, dim_groups

__all__ = ["Algebra"]

Addends = dict[Term, Fraction]


class Algebra:
    """Makes terms in normal form. Every method takes terms in normal form.

    And the shape of the result where it is needed.
    """

    def __init__(self) -> None:
        self.terms = Terms()
        self.one = self.terms.make("one", (), ())

    # --- sums and products ---------------------------------------------------------------------------------

    def number(self, value: Fraction, shape: Shape = ()) -> Term:
        """Return a constant of one shape."""
        return self.linear([(value, self.one)], shape)

    def addends(self, term: Term) -> Addends:
        """Return the addends of a term with their coefficients."""
        if term.op == "sum":
            return {part[1]: part[0] for part in term.args}
        return {term: Fraction(1)}

    def linear(self, parts: Iterable[tuple[Fraction, Term]], shape: Shape | None = None) -> Term:
        """Return the sum of coefficient x term, broadcast to `shape` (default: that of the terms)."""
        held = [(coefficient, self.unexpanded(term)) for coefficient, term in parts]
        if shape is None:
            shape = broadcast(term.shape for _, term in held)
        total: Addends = {}
        for coefficient, term in held:
            for part, factor in self.addends(term).items():
                total[part] = total.get(part, Fraction(0)) + coefficient * factor
        total = self.without_gaps({part: factor for part, factor in total.items() if factor})
        if len(total) == 1:
            ((part, factor),) = total.items()
            if factor == 1:
                return self.expand(part, shape)
        kept = tuple(sorted(((factor, part) for part, factor in total.items()), key=lambda pair: pair[1].index))
        own = broadcast([part.shape for _, part in kept] or [()])
        return self.expand(self.terms.make("sum", kept, own), shape)

    def add(self, one: Term, other: Term, alpha: Fraction = Fraction(1)) -> Term:
        """Return one + alpha x other."""
        return self.linear([(Fraction(1), one), (alpha, other)], broadcast([one.shape, other.shape]))

    def times(self, factor: Fraction, term: Term) -> Term:
        """Return a constant multiple."""
        return self.linear([(factor, term)], term.shape)

    def coefficient(self, term: Term) -> tuple[Fraction, Term]:
        """Return (c, t) with term = c x t, where t has no constant factor of its own."""
        inner = self.unexpanded(term)
        if inner.op == "sum" and len(inner.args) == 1:
            ((factor, part),) = inner.args
            return factor, self.expand(part, term.shape)
        return Fraction(1), term

    def product(self, factors: Sequence[Term]) -> Term:
        """Return the product of terms that broadcast."""
        shape = broadcast(factor.shape for factor in factors)
        constant = Fraction(1)
        held: list[Term] = []
        for factor in factors:
            number, inner = self.coefficient(factor)
            constant *= number
            inner = self.unexpanded(inner)
            if inner.op == "product":
                held.extend(inner.args)
            elif inner.op == "sum" and not inner.args:
                constant = Fraction(0)
            elif inner is not self.one:
                held.append(inner)
        if not constant:
            return self.linear([], shape)
        held = self._without_roots(sorted(held, key=lambda term: term.index))
        if not held:
            return self.number(constant, shape)
        if len(held) == 1:
            return self.linear([(constant, held[0])], shape)
        if held[0].op in ("view", "permute") and all(factor is held[0] for factor in held):
            moved = self.moved_as(held[0], self.product([held[0].args[0]] * len(held)))
            return self.linear([(constant, moved)], shape)
        split = self._along_cat(held)
        if split is not None:
            return self.linear([(constant, split)], shape)
        own = broadcast(term.shape for term in held)
        return self.linear([(constant, self.terms.make("product", held, own))], shape)

    def _without_roots(self, factors: list[Term]) -> list[Term]:
        """Return factors with sqrt(x) x sqrt(x) replaced by x, which holds wherever sqrt(x) is a real number."""
        for index, factor in enumerate(factors[:-1]):
            if factor.op == "sqrt" and factors[index + 1] is factor:
                rest = [*factors[:index], *factors[index + 2 :]]
                inner = factor.args[0]
                assert isinstance(inner, Term)
                product = self.unexpanded(self.product([inner, *rest]))
                return [product] if product.op != "product" else list(product.args)
        return factors

    def _along_cat(self, factors: Sequence[Term]) -> Term | None:
        """Return the product of concatenations that are split alike, as the concatenation of the products."""
        layouts = {self.cat_layout(factor) for factor in factors}
        if len(layouts) != 1 or None in layouts:
            return None
        parts = [self.product(list(group)) for group in zip(*(self.cat_parts(one) for one in factors), strict=True)]
        dim = factors[0].args[0]
        assert isinstance(dim, int)
        return self.cat(parts, dim)

    def recip(self, term: Term) -> Term:
        """Return 1 / term."""
        constant, inner = self.coefficient(term)
        inner = self.unexpanded(inner)
        if inner is self.one:
            return self.number(1 / constant, term.shape)
        if inner.op == "product":
            held = [self.recip(factor) for factor in inner.args]
            return self.expand(self.times(1 / constant, self.product(held)), term.shape)
        if inner.op == "recip":
            return self.expand(self.times(1 / constant, inner.args[0]), term.shape)
        found = self.terms.make("recip", (inner,), inner.shape)
        return self.linear([(1 / constant if constant else Fraction(0), found)], term.shape)

    def power(self, term: Term, exponent: Fraction) -> Term:
        """Return a power; whole exponents are products, halves are square roots."""
        if exponent < 0:
            return self.recip(self.power(term, -exponent))
        if exponent == 0:
            return self.number(Fraction(1), term.shape)
        if exponent.denominator == 1 and exponent <= 8:
            return self.product([term] * int(exponent))
        if exponent == Fraction(1, 2):
            return self.sqrt(term)
        return self.function("pow", [term], (exponent,))

    def sqrt(self, term: Term) -> Term:
        """Return the square root."""
        return self.function("sqrt", [term])

    def function(self, name: str, operands: Sequence[Term], constants: tuple[object, ...] = ()) -> Term:
        """Return an elementwise function of operands that broadcast; nothing is known of it but that it is one."""
        shape = broadcast(term.shape for term in operands)
        held = [self.unexpanded(term) for term in operands]
        if len(held) == 1 and self.cat_layout(held[0]) is not None:
            dim = held[0].args[0]
            assert isinstance(dim, int)
            parts = [self.function(name, [part], constants) for part in self.cat_parts(held[0])]
            return self.expand(self.cat(parts, dim), shape)
        if len(held) == 1 and held[0].op in ("view", "permute"):
            inner = self.function(name, [held[0].args[0]], constants)
            return self.expand(self.moved_as(held[0], inner), shape)
        own = broadcast(term.shape for term in held)
        return self.expand(self.terms.make(name, (*held, *constants), own), shape)

    # --- sums over dimensions ------------------------------------------------------------------------------

    def reduce_sum(self, term: Term, dims: Iterable[int]) -> Term:
        """Return the sum over dimensions, which are dropped."""
        dims = tuple(sorted(dims))
        if not dims:
            return term
        shape = tuple(size for dim, size in enumerate(term.shape) if dim not in dims)
        inner = self.unexpanded(term)
        if inner.op == "sum":
            return self.linear(
                [(factor, self.reduce_sum(self.expand(part, term.shape), dims)) for factor, part in inner.args],
                shape,
            )
        if inner is self.one:
            return self.number(Fraction(prod(term.shape[dim] for dim in dims)), shape)
        if self.cat_layout(inner) is not None and inner.shape == term.shape and inner.args[0] in dims:
            return self.linear([(Fraction(1), self.reduce_sum(part, dims)) for part in self.cat_parts(inner)], shape)
        if inner.op in ("view", "permute") and inner.shape == term.shape and not shape:
            base = inner.args[0]
            assert isinstance(base, Term)
            return self.reduce_sum(base, range(len(base.shape)))
        if inner.op == "view" and inner.shape == term.shape:
            found = self._sum_of_view(inner, dims, shape)
            if found is not None:
                return found
        if inner.op == "reduce_sum" and inner.shape == term.shape:
            return self._merged_sums(inner, dims, shape)
        return self.terms.make("reduce_sum", (term, dims), shape)

    def _sum_of_view(self, inner: Term, dims: tuple[int, ...], shape: Shape) -> Term | None:
        """Return a sum over a view as a view of a sum, where the summed dimensions are those of whole groups."""
        base = inner.args[0]
        assert isinstance(base, Term)
        if 0 in base.shape:
            return None
        summed = []
        for before, after in dim_groups(base.shape, inner.shape):
            inside = [dim in dims for dim in after]
            if any(inside) and not all(inside):
                return None
            if any(inside):
                summed.extend(before)
        if not summed:
            return None
        return self.view(self.reduce_sum(base, summed), shape)

    def _merged_sums(self, inner: Term, dims: tuple[int, ...], shape: Shape) -> Term:
        base, before = inner.args
        assert isinstance(base, Term)
        kept = [dim for dim in range(len(base.shape)) if dim not in before]
        return self.terms.make("reduce_sum", (base, tuple(sorted((*before, *(kept[dim] for dim in dims))))), shape)

    # --- what movement has; the ring needs them --------------------------------------------------------------

    def unexpanded(self, term: Term) -> Term:
        """Return the term without an outer broadcast."""
        raise NotImplementedError

    def expand(self, term: Term, shape: Shape) -> Term:
        """Return the term broadcast to `shape`."""
        raise NotImplementedError

    def view(self, term: Term, shape: Shape) -> Term:
        """Return the elements in the same order in another shape."""
        raise NotImplementedError

    def moved_as(self, moved: Term, term: Term) -> Term:
        """Return `term` moved as `moved`, a view or a permutation of a term of its shape."""
        raise NotImplementedError

    def cat(self, parts: Sequence[Term], dim: int) -> Term:
        """Return the concatenation of terms along a dimension."""
        raise NotImplementedError

    def without_gaps(self, total: Addends) -> Addends:
        """Return addends with those that are zero but for disjoint parts, which leave no gap, as one concatenation."""
        raise NotImplementedError

    def cat_layout(self, term: Term) -> tuple[int, ...] | None:
        """Return (rank, dimension, sizes of the parts) of a concatenation; None for any other term."""
        raise NotImplementedError

    def cat_parts(self, term: Term) -> tuple[Term, ...]:
        """Return the parts of a concatenation."""
        raise NotImplementedError
