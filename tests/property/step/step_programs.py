"""Programs of ranks that are recorded and run at once, on exact numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from property.step.step_arrays import Array, array, part
from property.step.step_operations import OPERATIONS, collective
from property.step.step_values import Values, wrong
from tpinit.step.graph import Graph, Leaf, Op, OpPlace, Ref, Value
from tpinit.step.lift import Lifter, ShardClaim
from tpinit.step.whole import WholeStep

_PLACE = OpPlace("", "program:1", "forward")


@dataclass(repr=False)
class Program:
    """A step of the ranks that is recorded and run at once; a value is its index on every rank."""

    ranks: int
    leaves: dict[str, Array] = field(default_factory=dict)
    claims: dict[str, ShardClaim] = field(default_factory=dict)
    _values: list[list[Value]] = field(default_factory=list)
    _arrays: list[list[Array]] = field(default_factory=list)
    _ops: list[list[Op]] = field(default_factory=list)
    _leaf_records: list[list[Leaf]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for held in (self._values, self._arrays, self._ops, self._leaf_records):
            held.extend([] for _ in range(self.ranks))

    def __repr__(self) -> str:
        claims = ", ".join(f"{name}: {claim.shape} {claim.index}" for name, claim in self.claims.items())
        ops = "; ".join(
            " | ".join(f"{op.name}{op.args} -> {op.outputs}" for op in each) for each in zip(*self._ops, strict=True)
        )
        return f"{self.ranks} ranks, {claims}: {ops}"

    @property
    def count(self) -> int:
        """How many values there are."""
        return len(self._values[0])

    def array(self, value: int, rank: int) -> Array:
        """Return the tensor of a rank."""
        return self._arrays[rank][value]

    def dtype(self, value: int) -> str:
        """Return the dtype of a value."""
        return self._values[0][value].dtype

    def leaf(self, name: str, whole: Array, index: Any, dtype: str = "float32") -> int:
        """Add a parameter of which each rank has the parts of `index`."""
        self.leaves[name] = whole
        self.claims[name] = ShardClaim(whole.shape, tuple(index))
        for rank in range(self.ranks):
            self._leaf_records[rank].append(Leaf(self.count if rank == 0 else self.count - 1, "parameter", name))
            self._add(rank, part(whole, index, rank), dtype)
        return self.count - 1

    def _add(self, rank: int, array: Array, dtype: str) -> int:
        self._values[rank].append(Value(tuple(array.shape), dtype))
        self._arrays[rank].append(array)
        return len(self._values[rank]) - 1

    def run(self, name: str, *each: Sequence[Any], dtype: str = "float32") -> list[int]:
        """Issue one operation: the arguments of every rank, or of all ranks if one is given. Return its results."""
        args = list(each) * self.ranks if len(each) == 1 else list(each)
        if name.startswith("collective."):
            results = collective(name, [self._arrays[r][args[r][0].value] for r in range(self.ranks)])
            args = [((one[0],), one[1], tuple(range(self.ranks))) for one in args]
        else:
            results = []
            for rank, own in enumerate(args):
                held = tuple(self._with_arrays(rank, arg) for arg in own)
                made = OPERATIONS[name](*held)
                results.append(made if isinstance(made, list) else [made])
        results = [[array(one) for one in made] for made in results]
        shapes = {len(one) for one in results}
        if len(shapes) > 1 or any(one.ndim > 4 or one.size > 300 for each in results for one in each):
            raise ValueError("the ranks make different numbers of tensors, or too large ones")
        first = self.count
        for rank, made in enumerate(results):
            outputs = tuple(self._add(rank, one, dtype) for one in made)
            full = name if "." in name else f"aten.{name}.default"
            self._ops[rank].append(Op(full, tuple(args[rank]), outputs, _PLACE))
        return list(range(first, self.count))

    def _with_arrays(self, rank: int, arg: Any) -> Any:
        if isinstance(arg, Ref):
            return self._arrays[rank][arg.value]
        return tuple(self._with_arrays(rank, one) for one in arg) if isinstance(arg, tuple) else arg

    def graphs(self) -> list[Graph]:
        """Return the recorded step of every rank."""
        return [
            Graph(
                rank, self.ranks, tuple(self._values[rank]), tuple(self._ops[rank]), tuple(self._leaf_records[rank]), {}
            )
            for rank in range(self.ranks)
        ]

    def lifter(self) -> Lifter:
        """Return a lifter of the step; there is no whole step to compare with."""
        return Lifter(WholeStep(Graph(0, 1, (), (), (), {})), self.graphs(), self.claims)

    def wrong(self, values: Sequence[int], claim: Any, terms: Values) -> str:
        """Return in which way a claim about these values (of each rank) is false; empty if it holds."""
        return wrong(claim, [self._arrays[rank][value] for rank, value in enumerate(values)], terms)
