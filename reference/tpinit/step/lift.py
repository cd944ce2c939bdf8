"""Lifts the recorded step of the ranks: each tensor of the ranks becomes a claim about one whole value.

Operations of the ranks are taken side by side. A rule gives the claim of a result from those of the operands; a value
without a rule is stuck, and so is what needs it. No rule trusts a name or a plan: from the claims about the leaves,
which are checked where the model is sharded, each claim follows for all values of the leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpinit.step.arguments import claims_in, terms_of, with_claims
from tpinit.step.calls import BLANKS, COPIES, VIEWS, Operation, base_name, is_random
from tpinit.step.graph import Arg, Graph, Op, Ref
from tpinit.step.layouts import Index, Kind, Lifted, Stuck, Tensors, normal_axis, whole_index
from tpinit.step.pieces import Pieces
from tpinit.step.rules import lift_op
from tpinit.step.terms import Shape, Term
from tpinit.step.whole import WholeStep, leaf_term, refs

__all__ = ["Failure", "Lifter", "Ranks", "ShardClaim"]


@dataclass(frozen=True, slots=True)
class ShardClaim:
    """What the ranks hold of a parameter: the shape of the whole, and for each dimension the pieces of every rank."""

    shape: Shape
    index: Index

    @classmethod
    def of_pieces(cls, shape: Shape, dim: int | None, pieces: Sequence[Pieces]) -> ShardClaim:
        """Return the claim of a parameter that is sharded along `dim` (None: replicated) in the pieces of each rank."""
        index: list[tuple[Pieces, ...] | None] = [None] * len(shape)
        if dim is not None:
            index[dim] = normal_axis(shape[dim], pieces)
        return cls(shape, tuple(index))


@dataclass(frozen=True, slots=True)
class Failure:
    """A stuck value: the operation of rank 0 at which no rule applied, and why."""

    op: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ranks:
    """One operation of every rank, side by side, with the claims about its tensor arguments.

    `args` are those of rank 0 with claims in place of tensors.
    """

    name: str
    ops: tuple[Op, ...]
    args: tuple[Any, ...]

    def constant(self, place: int) -> Any:
        """Return an argument that is equal on all ranks. Raises Stuck if it is not."""
        values = {op.args[place] for op in self.ops}
        if len(values) > 1:
            raise Stuck(f"argument {place} differs between the ranks: {sorted(map(str, values))}")
        return self.ops[0].args[place]

    def check_equal(self) -> None:
        """Raise Stuck if an argument that is no tensor differs between the ranks."""
        if not self.are_equal():
            raise Stuck("arguments differ between the ranks")

    def are_equal(self) -> bool:
        """Return whether all arguments that are no tensors are equal on the ranks."""
        return len({_constants(op.args) for op in self.ops}) == 1

    def constants(self, place: int) -> tuple[Any, ...]:
        """Return an argument of every rank."""
        return tuple(op.args[place] for op in self.ops)


class Lifter:
    """Lifts values of the ranks on demand. `claims` are about parameters, by name; all other leaves are replicated."""

    def __init__(self, whole: WholeStep, graphs: Sequence[Graph], claims: Mapping[str, ShardClaim]) -> None:
        self.whole = whole
        self.of = whole.of
        self.graphs = tuple(graphs)
        self.ranks = len(self.graphs)
        self._claims = claims
        self._same = [_same_values(graph) for graph in graphs]
        self._makers = [
            {value: index for index, op in enumerate(graph.ops) for value in op.outputs} for graph in graphs
        ]
        self._leaves = [{leaf.value: leaf for leaf in graph.leaves} for graph in graphs]
        self._order = [_collective_order(graph) for graph in graphs]
        self._found: dict[tuple[int, ...], Tensors | Failure] = {}
        self.lifted_ops: dict[int, Tensors | Failure] = {}

    # --- values ----------------------------------------------------------------------------------------------

    def lift(self, values: tuple[int, ...]) -> Tensors | Failure:
        """Return the claim about a value of each rank, or where it is stuck."""
        values = self._resolved(values)
        pending = [values]
        while pending:
            current = pending[-1]
            if current in self._found:
                pending.pop()
                continue
            needed = [one for one in self._operands(current) if one not in self._found]
            if needed:
                pending.extend(needed)
                continue
            pending.pop()
            self._make(current)
            self._found.setdefault(
                current, Failure(self.place_of(current), "the ranks read different results of one operation")
            )
        return self._found[values]

    def _resolved(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Return for each rank the value of which this one is a copy."""
        return tuple(same.get(value, value) for same, value in zip(self._same, values, strict=True))

    def shape(self, values: tuple[int, ...]) -> tuple[Shape, ...]:
        """Return the shape of a value on each rank."""
        return tuple(graph.values[value].shape for graph, value in zip(self.graphs, values, strict=True))

    def ops_of(self, values: tuple[int, ...]) -> tuple[Op, ...] | None:
        """Return the operations that made a value of each rank; None if one is a leaf."""
        made = [maker.get(value, -1) for maker, value in zip(self._makers, values, strict=True)]
        return None if -1 in made else tuple(graph.ops[at] for graph, at in zip(self.graphs, made, strict=True))
        # none is None

    def place_of(self, values: tuple[int, ...]) -> int:
        """Return the operation of rank 0 that made a value; -1 for a leaf."""
        return self._makers[0].get(values[0], -1)

    def cone(self, values: tuple[int, ...]) -> dict[int, Tensors | Failure]:
        """Return the operations of rank 0 that a value needs, each with what is known of its result."""
        pending, seen = [self._resolved(values)], {values}
        found: dict[int, Tensors | Failure] = {}
        while pending:
            current = pending.pop()
            place = self.place_of(current)
            if place >= 0 and current in self._found:
                found[place] = self._found[current]
            for one in self._operands(current):
                if one not in seen:
                    seen.add(one)
                    pending.append(one)
        return found

    def _operands(self, values: tuple[int, ...]) -> list[tuple[int, ...]]:
        ops = self.ops_of(values)
        if ops is None:
            return []
        lists = [refs(op.args) for op in ops]
        return (
            [self._resolved(one) for one in zip(*lists, strict=True)] if len({len(held) for held in lists}) == 1 else []
        )

    def _make(self, values: tuple[int, ...]) -> None:
        ops = self.ops_of(values)
        place = self.place_of(values)
        try:
            if ops is None:
                self._found[values] = self._leaf(values)
                return
            results = self._results(ops)
        except (ValueError, LookupError, ArithmeticError) as error:  # the recording is no step of such a model
            self._found[values] = Failure(place, f"the recorded arguments and shapes do not fit: {error}")
            return
        except Stuck as stuck:
            self._found[values] = Failure(place, stuck.reason)
            self.lifted_ops.setdefault(place, self._found[values])
            return
        except _Inherited as inherited:
            self._found[values] = inherited.failure
            return
        for index, outputs in enumerate(zip(*(op.outputs for op in ops), strict=True)):
            self._found.setdefault(outputs, results[index])
        self.lifted_ops.setdefault(place, results[0])

    def _leaf(self, values: tuple[int, ...]) -> Lifted:
        leaves = [held.get(value) for held, value in zip(self._leaves, values, strict=True)]
        names = {(leaf.kind, leaf.name) if leaf is not None else None for leaf in leaves}
        first = leaves[0]
        if len(names) != 1 or first is None:
            raise Stuck(f"the ranks read different tensors: {sorted(map(str, names))}")
        parameter = first.name.partition(":")[2] if first.kind == "state" else first.name
        claim = self._claims.get(parameter) if first.kind in ("parameter", "state") else None
        shapes = self.shape(values)
        if claim is None or (first.kind == "state" and shapes[0] == ()):
            if len(set(shapes)) != 1:
                raise Stuck(f"{first.kind} {first.name} has different shapes on the ranks, and no claim is about it")
            return Lifted(
                leaf_term(self.of, first, self.graphs[0].values[values[0]]), Kind.SHARD, whole_index(len(shapes[0]))
            )
        term = self.of.terms.make("leaf", (first.kind, first.name), claim.shape)
        lifted = Lifted(term, Kind.SHARD, claim.index)
        for rank, shape in enumerate(shapes):
            if lifted.local_shape(rank) != shape:
                raise Stuck(f"{first.name} has shape {list(shape)} on rank {rank}, not that of its claim")
        return lifted

    # --- operations ------------------------------------------------------------------------------------------

    def _results(self, ops: tuple[Op, ...]) -> list[Tensors]:
        names = {op.name for op in ops}
        views = all(base_name(op.name) in VIEWS for op in ops)
        if len(names) > 1 and views:
            ops = tuple(replace(op, name="aten.view.default", args=op.args[:1]) for op in ops)
        elif len(names) > 1 or len({_structure(op.args) for op in ops}) > 1 or len({len(op.outputs) for op in ops}) > 1:
            raise Stuck(f"the ranks issue different operations: {', '.join(sorted(names))}")
        if ops[0].name.startswith("collective."):
            self._check_paired(ops)
        lists = [refs(op.args) for op in ops]
        tuples = set(zip(*lists, strict=True))
        if len({values[0] for values in tuples}) != len(tuples):
            raise Stuck("one rank reads the same tensor twice where another reads two")
        claims = {values[0]: self._claim(values) for values in tuples}
        args = tuple(with_claims(arg, claims) for arg in ops[0].args)
        return lift_op(self, Ranks(base_name(ops[0].name), ops, args))

    def _claim(self, values: tuple[int, ...]) -> Tensors:
        found = self._found[self._resolved(values)]
        if isinstance(found, Failure):
            raise _Inherited(found)
        return found

    def _check_paired(self, ops: tuple[Op, ...]) -> None:
        """A collective meets the collectives of the other ranks with the same number: they must be this operation."""
        numbers = {order[id(op)] for order, op in zip(self._order, ops, strict=True)}
        if len(numbers) > 1:
            raise Stuck("this collective meets another one on another rank")

    def checked(self, term: Term, kind: Kind, index: Index, ops: tuple[Op, ...], output: int = 0) -> Lifted:
        """Return a claim whose shapes are those that were recorded. Raises Stuck if they are not."""
        lifted = Lifted(term, kind, index)
        for rank, (graph, op) in enumerate(zip(self.graphs, ops, strict=True)):
            if lifted.local_shape(rank) != graph.values[op.outputs[output]].shape:
                raise Stuck(
                    f"rank {rank} made shape {list(graph.values[op.outputs[output]].shape)}, and the rule "
                    f"{list(lifted.local_shape(rank))}"
                )
        return lifted

    def replicated(self, ranks: Ranks) -> list[Tensors] | None:
        """Return the results of an operation on replicated operands with equal arguments; None if they are not that.

        Every operation without random draws is a function of its arguments.
        """
        if (
            ranks.name in BLANKS
            or any(map(is_random, ranks.ops))
            or any(one.name.startswith("collective.") for one in ranks.ops)
        ):
            return None
        held = claims_in(ranks.args)
        if not all(isinstance(one, Lifted) and one.is_replicated for one in held):
            return None
        if not ranks.are_equal():
            return None
        outputs = tuple(self.graphs[0].values[value] for value in ranks.ops[0].outputs)
        terms = self.of.apply(Operation(ranks.name, terms_of(ranks.args), outputs, self.read(ranks)))
        return [
            self.checked(term, Kind.SHARD, whole_index(len(term.shape)), ranks.ops, place)
            for place, term in enumerate(terms)
        ]

    def partial_dtypes(self, ranks: Ranks) -> list[str]:
        """Return the dtypes of the operands of which each rank has an addend."""
        held = claims_in(ranks.args)
        return [
            dtype
            for dtype, claim in zip(self.read(ranks), held, strict=False)
            if isinstance(claim, Lifted) and claim.kind is Kind.PARTIAL
        ]

    def made(self, ranks: Ranks) -> tuple[Shape, ...]:
        """Return the shape of the first result of an operation on each rank."""
        return self.shape(tuple(op.outputs[0] for op in ranks.ops))

    def dtype(self, ranks: Ranks) -> str:
        """Return the dtype of the first result of an operation."""
        return self.graphs[0].values[ranks.ops[0].outputs[0]].dtype

    def read(self, ranks: Ranks) -> tuple[str, ...]:
        """Return the dtypes of the tensors that an operation reads."""
        return tuple(self.graphs[0].values[value].dtype for value in refs(ranks.ops[0].args))


class _Inherited(Exception):  # as Stuck
    """An operand is stuck."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def _same_values(graph: Graph) -> dict[int, int]:
    """Return for each copy of a value the value: a rank may copy where another one has no need to."""
    same: dict[int, int] = {}
    for op in graph.ops:
        if base_name(op.name) in COPIES:
            source = op.args[0]
            if isinstance(source, Ref) and len(op.outputs) == 1:
                same[op.outputs[0]] = same.get(source.value, source.value)
    return same


def _collective_order(graph: Graph) -> dict[int, tuple[Any, int]]:
    """Return for each collective its group and its number among those of the group."""
    counts: dict[Any, int] = {}
    order = {}
    for op in graph.ops:
        if op.name.startswith("collective."):
            group = op.args[2]
            counts[group] = counts.get(group, 0) + 1
            order[id(op)] = (group, counts[group])
    return order


def _structure(args: tuple[Arg, ...]) -> Any:
    """Return arguments with every tensor as one mark and every number as another."""
    return tuple(
        "tensor" if isinstance(arg, Ref) else _structure(arg) if isinstance(arg, tuple) else type(arg) for arg in args
    )


def _constants(args: tuple[Arg, ...]) -> Any:
    """Return arguments with every tensor as one mark; numbers of different types stay apart."""
    return tuple(
        Ref if isinstance(arg, Ref) else _constants(arg) if isinstance(arg, tuple) else (type(arg), arg) for arg in args
    )
