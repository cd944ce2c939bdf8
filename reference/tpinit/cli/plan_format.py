"""What the text and the page of `tpinit plan` share: rank ranges, shapes, byte sizes and totals as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["MEMORY_KINDS", "byte_size", "collective_totals", "memory_rows", "rank_range", "shape_text"]

MEMORY_KINDS = ("parameters", "gradients", "masters", "optimizer", "total")


def rank_range(ranks: list[int]) -> str:
    """Return a list of ranks as text; three or more consecutive ones by their first and last."""
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ", ".join(map(str, ranks))


def shape_text(lengths: list[int]) -> str:
    """Return a shape as text."""
    return " x ".join(map(str, lengths)) or "scalar"


def byte_size(count: float) -> str:
    """Return a number of bytes with a decimal unit, to three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def collective_totals(collectives: dict[str, Any]) -> list[str]:
    """Return two sentences: the totals of the collectives of a micro batch, and of a step."""
    periods = (("per_micro_batch", "forward and backward"), ("per_step", "a step, update included"))
    return [
        f"{period}: {collectives[key]['calls']} collectives, {byte_size(collectives[key]['bytes'])}, "
        f"on the wire {byte_size(collectives[key]['wire_bytes'])}"
        for key, period in periods
    ]


def memory_rows(memory: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield one row for the TP ranks whose memory is equal: the ranks, and the bytes of each of `MEMORY_KINDS`."""
    equal: dict[tuple[int, ...], list[int]] = {}
    for rank in memory:
        equal.setdefault(tuple(rank[kind] for kind in MEMORY_KINDS), []).append(rank["tp_rank"])
    for sizes, ranks in equal.items():
        yield rank_range(ranks), *(byte_size(size) for size in sizes)
