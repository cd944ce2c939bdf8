"""Which rule lifts which operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tpinit.step.arguments import claims_in, terms_of
from tpinit.step.calls import BLANKS, Operation, axes, is_random, is_real, number_of
from tpinit.step.graph import Value
from tpinit.step.labels import LabelSpec, labelled
from tpinit.step.layouts import (
    Blank,
    Filler,
    Index,
    Joined,
    Kind,
    Lifted,
    Local,
    LocalIds,
    Masked,
    RangeMask,
    Root,
    Stuck,
    Tensors,
    whole_index,
)
from tpinit.step.rules_collectives import COLLECTIVES
from tpinit.step.rules_joined import JOINED, join
from tpinit.step.rules_loss import LATE, STARTS, local_result
from tpinit.step.rules_movement import MOVEMENT
from tpinit.step.rules_vocabulary import VOCABULARY
from tpinit.step.specs import spec_of
from tpinit.step.whole import refs

if TYPE_CHECKING:
    from tpinit.step.lift import Lifter, Ranks

__all__ = ["lift_op"]

_VIEWS_OF_NOTHING = frozenset(("slice", "view", "select", "permute", "transpose", "t", "unsqueeze", "squeeze"))
Rule = Callable[["Lifter", "Ranks"], "list[Tensors] | None"]


def lift_op(lifter: Lifter, ranks: Ranks) -> list[Tensors]:
    """Return the claims about the results of an operation. Raises Stuck if no rule applies."""
    if any(isinstance(one, Local) for one in claims_in(ranks.args)):
        return local_result(lifter, ranks)
    if ranks.name.startswith("collective."):
        rule = COLLECTIVES.get(ranks.name)
        if rule is None:
            raise Stuck(f"no rule for {ranks.name}")
        return rule(lifter, ranks)
    if any(map(is_random, ranks.ops)):
        raise Stuck(f"{ranks.ops[0].name} draws random numbers, and this release has no rule for them")
    found = lifter.replicated(ranks)
    if found is not None:
        return found
    if ranks.name in _VIEWS_OF_NOTHING and isinstance(ranks.args[0], (Blank, Filler)):
        return _blank(lifter, ranks)
    found = _by_tables(lifter, ranks)
    if found is None and any(isinstance(one, Joined) for one in claims_in(ranks.args)):
        ranks = replace(ranks, args=_with_joined(lifter, ranks.args))
        found = lifter.replicated(ranks) or _by_tables(lifter, ranks)
    return found if found is not None else _by_labels(lifter, ranks)


def _by_tables(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    for table in (STARTS, VOCABULARY, LATE, JOINED, MOVEMENT, _RULES):
        special = table.get(ranks.name)
        result = special(lifter, ranks) if special is not None else None
        if result is not None:
            return result
    return None


def _with_joined(lifter: Lifter, args: Any) -> Any:
    """Return arguments with every joined tensor as the parts of one whole that it must be here."""
    if isinstance(args, tuple):
        return tuple(_with_joined(lifter, one) for one in args)
    return join(lifter, args) if isinstance(args, Joined) else args


_SCALARS = {"where": 3, **dict.fromkeys(("add", "sub", "rsub", "mul", "div", "lerp", "maximum", "minimum"), 2)}
"""How many of the first arguments of an elementwise operation are operands: a number among them is a scalar tensor."""


def _by_labels(lifter: Lifter, ranks: Ranks) -> list[Tensors]:
    """Lift an operation by its labels; the whole operation has the same arguments."""
    operands = [_lifted(lifter, one) for one in claims_in(ranks.args)]
    if not operands:
        raise Stuck(f"no rule for {ranks.ops[0].name} on the ranks")
    scalars = ranks.args[: _SCALARS.get(ranks.name, 0)]
    if scalars:
        numbered = [_scalar(lifter, one) for one in scalars]
        operands = [*numbered, *operands[len(claims_in(scalars)) :]]
    spec = spec_of(ranks.name, ranks.args, [one.term.shape for one in operands])
    if spec is None:
        raise Stuck(f"no rule for {ranks.ops[0].name} on operands of which a rank has a part")
    return _of_layouts(lifter, ranks, labelled(spec, operands, lifter.ranks), _sizes(spec, operands))


def _scalar(lifter: Lifter, arg: Any) -> Lifted:
    """Return an operand of an elementwise operation, which may be a number."""
    number = number_of(arg)
    return _lifted(lifter, arg) if number is None else Lifted(lifter.of.number(number), Kind.SHARD, ())


def _sizes(spec: LabelSpec, operands: list[Lifted]) -> list[tuple[int | None, ...]]:
    """Return the whole sizes of the dimensions of each result; None for one that is on no operand."""
    sizes: dict[str, int | None] = {
        label: size
        for labels, operand in zip(spec.operands, operands, strict=True)
        for label, size in zip(labels, operand.term.shape, strict=True)
        if label
    }
    return [tuple(sizes.get(label) for label in labels) for labels in spec.results]


def _of_layouts(
    lifter: Lifter, ranks: Ranks, layouts: list[tuple[Kind, Index]], sizes: list[tuple[int | None, ...]]
) -> list[Tensors]:
    """Return the claims about the results of an operation, given the layouts.

    The whole operation has the same arguments.
    """
    ranks.check_equal()
    values = [lifter.graphs[0].values[value] for value in ranks.ops[0].outputs]
    partial = any(kind is Kind.PARTIAL for kind, _ in layouts)
    if partial and not all(map(is_real, (*(value.dtype for value in values), *lifter.partial_dtypes(ranks)))):
        raise Stuck("each rank has an addend of numbers that are not real")
    if ranks.name == "div" and len(ranks.args) > 2 and ranks.args[2] is not None and partial:
        raise Stuck("a rounded quotient is not linear")
    outputs = tuple(
        Value(tuple(own if size is None else size for own, size in zip(value.shape, whole, strict=True)), value.dtype)
        for value, whole in zip(values, sizes, strict=True)
    )
    terms = lifter.of.apply(Operation(ranks.name, terms_of(ranks.args), outputs, lifter.read(ranks)))
    if ranks.name == "mean":
        terms = (_rescaled(lifter, ranks, _lifted(lifter, ranks.args[0]), terms[0]),)
    return [
        lifter.checked(term, kind, index, ranks.ops, output)
        for output, (term, (kind, index)) in enumerate(zip(terms, layouts, strict=True))
    ]


def _rescaled(lifter: Lifter, ranks: Ranks, operand: Lifted, term: Any) -> Any:
    """Return what a mean over this rank's elements is: the ranks divide by their own count."""
    dims = axes(ranks.args[1] if len(ranks.args) > 2 else None, len(operand.term.shape))
    counts = set()
    for rank in range(lifter.ranks):
        count = 1
        for dim in dims:
            count *= operand.local_shape(rank)[dim]
        counts.add(count)
    if len(counts) > 1:
        raise Stuck("the ranks divide a mean by different counts")
    whole = 1
    for dim in dims:
        whole *= operand.term.shape[dim]
    return lifter.of.times(Fraction(whole, counts.pop()), term)


def _lifted(lifter: Lifter, claim: Tensors) -> Lifted:
    if isinstance(claim, Lifted):
        return claim
    if isinstance(claim, Joined):
        return join(lifter, claim)
    raise Stuck(f"no rule reads a {type(claim).__name__} here")


# --- operations that are others together -----------------------------------------------------------------------


def _plus_product(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """Addmm and baddbmm: a product, and a sum, each by its labels."""
    base, one, other = (_lifted(lifter, arg) for arg in ranks.args[:3])
    beta, alpha = (number_of(ranks.constant(place)) for place in (3, 4))
    if beta is None or alpha is None:
        return None
    batched = ranks.name == "baddbmm"
    of = lifter.of
    spec = spec_of("bmm" if batched else "mm", (), ())
    assert spec is not None
    ((kind, index),) = labelled(spec, [one, other], lifter.ranks)
    term = of.contract(one.term, other.term, [(0, 0)] if batched else [], [(2, 1) if batched else (1, 0)])
    product = Lifted(of.times(alpha, term), kind, index)
    addend = replace(base, term=of.times(beta, base.term))
    spec = spec_of("add", (), [addend.term.shape, product.term.shape])
    assert spec is not None
    ((kind, index),) = labelled(spec, [addend, product], lifter.ranks)
    return [lifter.checked(of.add(addend.term, product.term), kind, index, ranks.ops)]


def _vector_norm(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """The 2-norm of all elements: on each rank the root of its part of the sum of squares."""
    operand = _lifted(lifter, ranks.args[0])
    if number_of(ranks.constant(1)) != 2 or ranks.constant(2) not in (None, ()) or ranks.constant(3):
        return None
    of = lifter.of
    spec = spec_of("mul", (), [operand.term.shape] * 2)
    total = spec_of("sum", (0,), [operand.term.shape])
    assert spec is not None
    assert total is not None
    ((kind, index),) = labelled(spec, [operand, operand], lifter.ranks)
    square = of.product([operand.term, operand.term])
    ((kind, index),) = labelled(total, [Lifted(square, kind, index)], lifter.ranks)
    summed = Lifted(of.reduce_sum(square, range(len(square.shape))), kind, index)
    return [Root(summed)] if kind is Kind.PARTIAL else [replace(summed, term=of.sqrt(summed.term))]


def _square(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    operand = ranks.args[0]
    is_square = ranks.name != "pow" or number_of(ranks.constant(1)) == 2
    return [operand.squared] if isinstance(operand, Root) and is_square else None


def _same(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """A conversion between real dtypes of a value that only a macro reads is that value."""
    operand = ranks.args[0]
    if isinstance(operand, Lifted) or not (is_real(lifter.dtype(ranks)) and is_real(lifter.read(ranks)[0])):
        return None
    return [operand]


def _linear_in_masked(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """masked_fill with 0 is linear in what it fills, where the mask is replicated."""
    operand, mask = ranks.args[:2]
    if not isinstance(operand, Lifted) or not isinstance(mask, Lifted) or operand.kind is Kind.SHARD:
        return None
    if number_of(ranks.constant(2)) != 0:
        raise Stuck("masked_fill with a number other than 0 of a tensor of which each rank has an addend")
    spec = spec_of("mul", (), [operand.term.shape, mask.term.shape])
    assert spec is not None
    ((kind, index),) = labelled(spec, [operand, mask], lifter.ranks)
    of = lifter.of
    term = of.function("where", [mask.term, of.number(Fraction(0)), operand.term])
    return [lifter.checked(of.expand(term, operand.term.shape), kind, index, ranks.ops)]


def _not(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    operand = ranks.args[0]
    return [replace(operand, negated=not operand.negated)] if isinstance(operand, RangeMask) else None


def _filled(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """A new tensor of one shape on all ranks, filled with a number, whatever it is modelled on."""
    shapes = set(lifter.made(ranks))
    if len(shapes) > 1:
        raise Stuck("the ranks fill tensors of different shapes")
    term = lifter.of.number(Fraction(1 if ranks.name == "new_ones" else 0), shapes.pop())
    return [Lifted(term, Kind.SHARD, whole_index(len(term.shape)))]


def _blank(lifter: Lifter, ranks: Ranks) -> list[Tensors]:
    """A new tensor of one shape on all ranks, whose elements are anything until they are written."""
    shapes = set(lifter.made(ranks))
    if len(shapes) > 1:
        raise Stuck("the ranks make new tensors of different shapes")
    return [Blank(shapes.pop())]


def _copied(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """A tensor of the same shape is written over another."""
    source, read = ranks.args[1], lifter.read(ranks)
    if read[-1] != lifter.dtype(ranks) and not (is_real(read[-1]) and is_real(lifter.dtype(ranks))):
        raise Stuck("a copy that converts numbers")
    shapes = {
        len({graph.values[one].shape for one in (refs(op.args)[-1], op.outputs[0])})
        for graph, op in zip(lifter.graphs, ranks.ops, strict=True)
    }
    if shapes != {1}:
        raise Stuck("a copy that broadcasts")
    if not isinstance(source, Lifted):
        return [source] if isinstance(source, (RangeMask, LocalIds, Masked, Root, Local)) else None
    return [lifter.checked(source.term, source.kind, source.index, ranks.ops)]


def _grouped_attention(lifter: Lifter, ranks: Ranks) -> list[Tensors] | None:
    """Attention in which several query heads share a key-value head: query head i reads key-value head i // group."""
    claims = [_lifted(lifter, one) for one in claims_in(ranks.args)]
    place = 1 if ranks.name.endswith("backward") else 0
    query, key, value = claims[place : place + 3]
    heads, shared = query.term.shape[1], key.term.shape[1]
    if heads == shared:
        return None
    group, cut = heads // shared, key.index[1]
    if heads != group * shared or value.index[1] != cut or value.term.shape[1] != shared:
        raise Stuck("key and value heads do not divide the query heads")
    scaled = cut if cut is None else tuple(tuple((o * group, n * group) for o, n in pieces) for pieces in cut)
    if scaled != query.index[1]:
        raise Stuck("a rank has query heads of key-value heads that it does not have")
    of = lifter.of
    for other in (place + 1, place + 2):
        term, index = claims[other].term, claims[other].index
        stand_in = of.terms.make("stand-in", (term,), (term.shape[0], heads, *term.shape[2:]))
        claims[other] = Lifted(stand_in, claims[other].kind, (index[0], scaled, *index[2:]))
    spec = spec_of(ranks.name, ranks.args, [one.term.shape for one in claims])
    assert spec is not None
    layouts = labelled(spec, claims, lifter.ranks)
    if place:
        layouts = [layouts[0], *((kind, (index[0], cut, *index[2:])) for kind, index in layouts[1:])]
        sizes: list[tuple[int | None, ...]] = [one.term.shape for one in (query, key, value)]
    else:
        sizes = [(*query.term.shape[:3], value.term.shape[3]), query.term.shape[:3]]
    return _of_layouts(lifter, ranks, layouts, sizes)


_RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention_for_cpu_backward"),
        _grouped_attention,
    ),
    **dict.fromkeys(("new_zeros", "new_ones"), _filled),
    **dict.fromkeys(BLANKS, _blank),
    "copy": _copied,
    "addmm": _plus_product,
    "baddbmm": _plus_product,
    "linalg_vector_norm": _vector_norm,
    "square": _square,
    "pow": _square,
    "_to_copy": _same,
    "masked_fill": _linear_in_masked,
    "bitwise_not": _not,
    "logical_not": _not,
}
