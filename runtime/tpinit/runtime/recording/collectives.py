"""What an operator between ranks sends and receives: one form for those of torch.ops.c10d and the functional ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime.internals.record_private import (
    COLLECTIVE_NAMESPACES,
    COLLECTIVES,
    WAITS,
    group_named,
    group_of,
    reduction_of,
    schema_arguments,
)
from tpinit.runtime.recording.content import tensors_of
from tpinit.runtime.recording.errors import RecordError
from tpinit.step.graph import Arg

__all__ = ["RecordedCollective", "is_collective", "is_wait", "read_collective"]


@dataclass(frozen=True, slots=True)
class RecordedCollective:
    """A collective on this rank.

    `sent` and `filled` are its tensors in order: `filled` those that it writes, none for an operator that returns what
    it received. `reduction` is "sum", "max", ... or None. `extra` is what else decides the result: the global rank that
    a broadcast comes from, the lengths (received, sent) of a single-tensor all_to_all.
    """

    kind: str
    sent: tuple[torch.Tensor, ...]
    filled: tuple[torch.Tensor, ...]
    reduction: str | None
    group: dist.ProcessGroup
    extra: tuple[Arg, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """The global ranks of the group, in its order."""
        return tuple(dist.get_process_group_ranks(self.group))

    def received(self, result: Any) -> tuple[torch.Tensor, ...]:
        """Return the received tensors, given what the operator returned."""
        return self.filled or (() if self.kind == "barrier" else tuple(tensors_of(result)))


def is_collective(operator: Any) -> bool:
    """Return whether an operator is one between ranks."""
    return operator.namespace in COLLECTIVE_NAMESPACES


def is_wait(operator: Any) -> bool:
    """Return whether an operator waits for a collective, and returns what it was given."""
    return operator.name() in WAITS


def read_collective(operator: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> RecordedCollective:
    """Return what a call of an operator between ranks does. Raises RecordError for a kind that isn't recorded."""
    name = operator.name().partition(".")[0]
    if name not in COLLECTIVES:
        raise RecordError(
            f"the step calls {operator}, a message between ranks that isn't recorded; recorded are all_reduce, "
            "all_gather, reduce_scatter, broadcast, all_to_all and barrier over a group"
        )
    kind, sent, filled = COLLECTIVES[name]
    arguments = schema_arguments(operator)
    given = {one.name: one.default for one in arguments}
    given |= dict(zip(given, args, strict=False)) | dict(kwargs)
    boxed = given.get("process_group")
    group = group_of(boxed) if boxed is not None else group_named(given["group_name"])
    return RecordedCollective(
        kind,
        tuple(tensors_of(given.get(sent))),
        tuple(tensors_of(given.get(filled))),
        _reduction(given.get("reduce_op")),
        group,
        _extra(kind, given, group),
    )


def _reduction(argument: Any) -> str | None:
    if argument is None or isinstance(argument, str):
        return argument
    return reduction_of(argument)


def _extra(kind: str, given: Mapping[str, Any], group: dist.ProcessGroup) -> tuple[Arg, ...]:
    if kind == "broadcast":
        source = given.get("src", given.get("root_rank"))
        return (dist.get_global_rank(group, int(source)),)
    if kind == "all_to_all" and "output_split_sizes" in given:
        return (tuple(given["output_split_sizes"]), tuple(given["input_split_sizes"]))
    return ()
