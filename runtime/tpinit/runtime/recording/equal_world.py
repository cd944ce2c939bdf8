"""One rank of a world in which all ranks hold the same: it runs in this process, without the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from tpinit.runtime.internals.record_private import start_fake_world
from tpinit.runtime.internals.torch_private import PlainDispatchMode
from tpinit.runtime.recording.collectives import RecordedCollective, is_collective, is_wait, read_collective
from tpinit.runtime.recording.errors import RecordError

__all__ = ["equal_world"]

_KEEPS = ("max", "min", "avg", "band", "bor")  # reductions of equal tensors that give the same tensor


@contextmanager
def equal_world(rank: int, ranks: int) -> Iterator[None]:
    """Run what is inside as `rank` of a world of `ranks` that all send what this one sends.

    So a sum is `ranks` times the own tensor, and checks that all ranks agree pass. No process is started, and the world
    is destroyed at the end. Raises RecordError if torch.distributed is started already.
    """
    if dist.is_initialized():
        raise RecordError(
            "torch.distributed is started in this process, and recording simulates a world of its own: record before "
            "init_process_group, after destroy_process_group, or in another process"
        )
    if not 0 <= rank < ranks:
        raise RecordError(f"rank {rank} of a world of {ranks}: it must be at least 0 and less than the size")
    start_fake_world(rank, ranks)
    try:
        with _Equals():
            yield
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class _Equals(PlainDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves its base untyped
    """Gives each collective of a fake world the result that equal ranks would get."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator; behind a collective, write what it would have received."""
        kwargs = kwargs or {}
        if not is_collective(func) or is_wait(func):
            return func(*args, **kwargs)
        call = read_collective(func, args, kwargs)
        sent = [one.detach().clone() for one in call.sent]
        result = func(*args, **kwargs)
        with torch.no_grad():
            _receive(call, sent, call.received(result))
        return result


def _receive(call: RecordedCollective, sent: list[torch.Tensor], received: tuple[torch.Tensor, ...]) -> None:
    ranks = len(call.ranks)
    factor = _factor(call, ranks)
    if call.kind in ("all_reduce", "broadcast"):
        for own, into in zip(sent, received, strict=True):
            into.copy_(own * factor if factor != 1 else own)
    elif call.kind == "all_gather":
        for index, into in enumerate(received):
            _fill(into, sent[index * len(sent) // len(received)])
    elif call.kind in ("reduce_scatter", "all_to_all"):
        position = dist.get_rank(call.group)
        chunks = list(sent[0].chunk(ranks)) if len(sent) == 1 else sent
        mine = chunks[min(position, len(chunks) - 1)]
        for into in received:
            _fill(into, mine * factor if factor != 1 else mine)


def _factor(call: RecordedCollective, ranks: int) -> int:
    """Return by what a reduction over equal ranks multiplies. Raises RecordError for one that isn't a multiple."""
    if call.reduction is None or call.reduction in _KEEPS:
        return 1
    if call.reduction == "sum":
        return ranks
    raise RecordError(f"{call.kind} with the reduction {call.reduction!r} isn't simulated; sum, avg, max and min are")


def _fill(into: torch.Tensor, own: torch.Tensor) -> None:
    """Fill a tensor with the elements of another, repeated as often as they fit."""
    if own.numel() and into.numel():
        index = torch.arange(into.numel()) % own.numel()
        into.copy_(own.reshape(-1)[index].view(into.shape))
