"""The recorded step of the whole model as terms of its leaves."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from tpinit.step.calls import BLANKS, Operation, base_name
from tpinit.step.graph import Arg, Graph, Leaf, Ref, Value
from tpinit.step.meaning import Meaning
from tpinit.step.terms import Term

__all__ = ["WholeStep", "leaf_term", "needed_ops"]


class WholeStep:
    """The terms of every value that the results of a whole step need. `of` makes terms.

    And is shared with the ranks.
    """

    def __init__(self, graph: Graph) -> None:
        self.of = Meaning()
        self.graph = graph
        self.value_terms: dict[int, Term] = {}
        for leaf in graph.leaves:
            self.value_terms[leaf.value] = leaf_term(self.of, leaf, graph.values[leaf.value])
        for index in needed_ops(graph):
            self._apply(index)
        self.known = set(self.value_terms.values())
        self.results = {name: self.value_terms[value] for name, value in graph.results.items()}

    def _apply(self, index: int) -> None:
        op = self.graph.ops[index]
        name = base_name(op.name)
        outputs = tuple(self.graph.values[value] for value in op.outputs)
        read = tuple(self.graph.values[value].dtype for value in refs(op.args))
        args = tuple(_with_terms(arg, self.value_terms) for arg in op.args)
        if name in BLANKS:  # its elements are anything: no two are equal
            args = (f"value {op.outputs[0]}",)
        self.value_terms.update(zip(op.outputs, self.of.apply(Operation(name, args, outputs, read)), strict=True))


def leaf_term(of: Meaning, leaf: Leaf, value: Value) -> Term:
    """Return the term of a leaf; of a constant whose elements are equal, its number."""
    if leaf.kind == "constant" and leaf.numbers:
        numbers = {Fraction(text) for text in leaf.numbers}
        if len(numbers) == 1:
            return of.number(numbers.pop(), value.shape)
    return of.terms.make("leaf", (leaf.kind, leaf.name), value.shape)


def refs(args: Sequence[Arg]) -> list[int]:
    """Return the values among arguments, in order."""
    found: list[int] = []
    for arg in args:
        if isinstance(arg, Ref):
            found.append(arg.value)
        elif isinstance(arg, tuple):
            found.extend(refs(arg))
    return found


def needed_ops(graph: Graph) -> list[int]:
    """Return the operations that the results need, in the order in which they were issued."""
    maker = {value: index for index, op in enumerate(graph.ops) for value in op.outputs}
    wanted, found = list(graph.results.values()), set()
    while wanted:
        index = maker.get(wanted.pop())
        if index is not None and index not in found:
            found.add(index)
            wanted.extend(refs(graph.ops[index].args))
    return sorted(found)


def _with_terms(arg: Arg, terms: dict[int, Term]) -> Any:
    if isinstance(arg, Ref):
        return terms[arg.value]
    if isinstance(arg, tuple):
        return tuple(_with_terms(one, terms) for one in arg)
    return arg
