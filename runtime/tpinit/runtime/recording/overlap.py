"""Which bytes a tensor spans, and whether an operator that writes to several tensors writes one of them twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from tpinit.runtime.internals.record_private import storage_identity

__all__ = ["overlap", "span_of", "writes_collide"]


def span_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first byte that a tensor has in its storage, and the one behind its last."""
    if not tensor.numel():
        return 0, 0
    first = int(tensor.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first * tensor.element_size(), (last + 1) * tensor.element_size()


def overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether two spans have bytes in common."""
    return max(one[0], other[0]) < min(one[1], other[1])


def writes_collide(given: Mapping[str, Any], written: Collection[str]) -> bool:
    """Return whether what an operator writes to one tensor may change another that it writes, or reads later.

    `given` are its arguments by name, `written` the names of those that it writes. It goes through its lists index by
    index, so a tensor may be read at the index at which it is written.
    """
    by_storage = defaultdict(list)
    for name, index, tensor in _entries(given):
        by_storage[storage_identity(tensor.untyped_storage())].append((name in written, index, span_of(tensor)))
    for entries in by_storage.values():
        for place, (writes, index, span) in enumerate(entries):
            others = entries[:place] + entries[place + 1 :]
            if writes and any(
                overlap(span, other) and (also or index != at or span != other) for also, at, other in others
            ):
                return True
    return False


def _entries(given: Mapping[str, Any]) -> Iterator[tuple[str, int | None, torch.Tensor]]:
    for name, value in given.items():
        listed = isinstance(value, (list, tuple))
        for index, one in enumerate(value if listed else [value]):
            if isinstance(one, torch.Tensor):
                yield name, index if listed else None, one
