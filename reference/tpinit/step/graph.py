"""One recorded training step as plain data: tensor values, the operations that made them, and where each came from.

A graph is functional: an operation that writes to a tensor makes a new value. Views of one memory are operations too,
so a write through a view appears as a new value of its base (`tpinit.write_view`), and later reads of other views of
that base are made from it again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Arg", "Graph", "Leaf", "Op", "OpPlace", "Ref", "Value", "from_json", "to_json"]


@dataclass(frozen=True, slots=True)
class Ref:
    """A value as an argument of an operation: its index in `Graph.values`."""

    value: int


Arg = Any
"""An argument of an operation. Dtypes, devices, layouts and memory formats are strings ("torch.float32")."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: its shape (elements) and dtype ("float32", "int64", "bool", ...)."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class OpPlace:
    """Where an operation was issued: the module's path, the source line ("file.py:12"), and "forward".

    "backward" or "step".
    """

    module: str
    line: str
    phase: str


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: `name` is torch's ("aten.mm.default"), or "collective.KIND" for one between ranks.

    `args` are all arguments in the order of its schema, defaults included. `outputs` are the values that it made, in
    order: what it returned, or what it wrote to where it returns nothing new. A collective's `args` are (sent values,
    reduction or None, ranks of the group); its outputs are what this rank received.
    """

    name: str
    args: tuple[Arg, ...]
    outputs: tuple[int, ...]
    place: OpPlace


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value that no operation made.

    `kind` is "parameter", "buffer", "batch", "state" (of the optimizer) or "constant"; `name` is its name in the model,
    in the batch, or "STATE:PARAMETER"; of a constant it is a digest of its elements. `numbers` are a constant's
    elements where it has at most 64, as text that Fraction reads, else empty.
    """

    value: int
    kind: str
    name: str
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """The recorded step of the whole model (`ranks` 1) or of one rank of a TP group.

    `results` name values: "loss", "grad NAME" (after the backward and the sums over ranks), "norm" (before clipping),
    "parameter NAME" and "state STATE:NAME" (after the update). `premises` are the numbers that the host read, by which
    the program could branch: (value, number read).
    """

    rank: int
    ranks: int
    values: tuple[Value, ...]
    ops: tuple[Op, ...]
    leaves: tuple[Leaf, ...]
    results: Mapping[str, int]
    premises: tuple[tuple[int, str], ...] = field(default=())


def to_json(graph: Graph) -> str:
    """Return a graph as one line of JSON."""
    return json.dumps(asdict(graph), separators=(",", ":"))


def from_json(text: str) -> Graph:
    """Return the graph that `to_json` wrote. Raises ValueError for anything else."""
    try:
        read = json.loads(text)
        return Graph(
            read["rank"],
            read["ranks"],
            tuple(Value(tuple(one["shape"]), one["dtype"]) for one in read["values"]),
            tuple(
                Op(op["name"], _args(op["args"]), tuple(op["outputs"]), OpPlace(**op["place"])) for op in read["ops"]
            ),
            tuple(Leaf(leaf["value"], leaf["kind"], leaf["name"], tuple(leaf["numbers"])) for leaf in read["leaves"]),
            dict(read["results"]),
            tuple((value, number) for value, number in read["premises"]),
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a recorded step: {type(error).__name__}: {error}") from error


def _args(args: list[Any]) -> tuple[Arg, ...]:
    return tuple(_arg(one) for one in args)


def _arg(arg: Any) -> Arg:
    if isinstance(arg, dict):
        return Ref(arg["value"])
    return _args(arg) if isinstance(arg, list) else arg
